"""The settings of runs: those that affect a result, and those that distinguish runs, in the words of a legend.

`FREE` lists the entries that do not affect a result. All others do, unknown entries included, so that runs that differ
in a plug-in or in an option of a later version are never grouped together.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tinylm.locate import TOKENIZER
from tinylm.runs.lineage import DEEPEST, find_parent, read_config

SEEDS = ("seed_everything", "data.seed")
LOGGING = ("trainer.logger", "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary",
           "trainer.enable_checkpointing", "trainer.enable_autolog_hparams", "trainer.model_registry",
           "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.default_root_dir")  # fmt: skip
DEVICES = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
           "data.micro_batch_size", "trainer.accumulate_grad_batches")  # fmt: skip
SPEED = ("trainer.benchmark", "trainer.deterministic", "trainer.detect_anomaly", "trainer.inference_mode",
         "data.num_workers", "data.shard_timeout", "data.cache_dir", "data.max_cache_gb")  # fmt: skip
FREE = (*SEEDS, *LOGGING, *DEVICES, *SPEED, "run", "model.network.vocab_size", "weights_only")
"""Entries that do not matter. The vocabulary follows from text and tokenizer; `data.batch_size` is the global batch."""

OBSERVERS = ("ActivationStatistics", "AttentionEntropy", "GradientNorms", "StepProfile", "LearningRateMonitor",
             "DeviceStatsMonitor", "ThroughputMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary",
             "TQDMProgressBar", "RichProgressBar")  # fmt: skip
"""Callbacks of tinylm and Lightning that only affect what is written and printed."""
OURS = ("tinylm.", "lightning.", "pytorch_lightning.")

USUAL = {
    "model.optimizer.lr": "lr", "model.network.d_model": "width", "model.network.num_layers": "layers",
    "model.network.num_heads": "heads", "model.network.max_seq_len": "context", "data.batch_size": "batch",
    "trainer.max_steps": "steps", "model.optimizer.name": "optimizer", "model.optimizer": "optimizer",
    "model.schedule.name": "schedule", "model.schedule": "schedule", "model.schedule.warmup_steps": "warmup",
    "model.optimizer.weight_decay": "weight decay", "model.network.dropout": "dropout", "data.corpus": "corpus",
    "data.tokenizer": "tokenizer", "trainer.precision": "precision", "trainer.gradient_clip_val": "clip",
    "model.objective": "objective", "data": "data", "model": "model", "seed_everything": "seed",
}  # fmt: skip
"""Words for the usual entries, in the order of a legend; any other entry is called by the last part of its name."""
GENERATED = re.compile(r"(stories|.*\.grammar\.ya?ml)(:\d+)?")
PARENT = "parent"
BEGINNINGS = {"ckpt_path": "continued", "model.init_from": "finetuned"}
MOST = 4
"""Most differences in a label; runs that differ in more are called by their names."""

Settings = dict[str, Any]


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config to dotted names."""
    flat = {}
    for name, value in config.items():
        flat |= flat_config(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def read_settings(folder: Path, keep: Collection[str] = (), depth: int = 0) -> Settings:
    """The settings of a run that affect its result, by dotted name.

    Args:
        folder: the run folder
        keep: names in `FREE` that count nevertheless
        depth: the number of descendants that have led here

    If a config names a part by class path, the class is under the part's name. The settings of a parent run are under
    `parent.`, instead of its path.
    """
    config = read_config(folder)
    flat = _flatten(config)
    parent = find_parent(folder, config) if depth < DEEPEST else None
    inherited = {} if parent is None else read_settings(parent.folder, keep, depth + 1)
    if parent is not None:
        flat |= {PARENT: BEGINNINGS[parent.entry], f"{PARENT}.step": parent.step, parent.entry: None}
        flat |= {f"{PARENT}.{name}": value for name, value in inherited.items()}
    if parent is not None and parent.entry == "model.init_from":  # its tokenizer is the parent's
        flat["data.tokenizer"] = inherited.get("data.tokenizer")
    elif isinstance(flat.get("data.tokenizer"), str) and Path(flat["data.tokenizer"]).name == TOKENIZER:
        own = Path(flat["data.tokenizer"]).parent.name == folder.name
        flat["data.tokenizer"] = f"{{run}}/{TOKENIZER}" if own else flat["data.tokenizer"]
    flat["trainer.callbacks"] = _acting(flat.get("trainer.callbacks"))
    if "data.text_seed" not in flat and _draws_text(config.get("data") or {}):
        flat["data.text_seed"] = flat.get("data.seed", 0)  # older versions drew text and order by one seed
    return {name: value for name, value in flat.items() if _matters(name, value, keep)}


def settings_of(config: dict[str, Any]) -> Settings:
    """The settings of a config that affect its result, by dotted name; the settings of a parent run are not read."""
    flat = _flatten(config)
    flat["trainer.callbacks"] = _acting(flat.get("trainer.callbacks"))
    if Path(str(flat.get("data.tokenizer"))).name == TOKENIZER:  # in the run folder, whose name is free
        flat["data.tokenizer"] = TOKENIZER
    return {name: value for name, value in flat.items() if _matters(name, value, ())}


def _flatten(value: Any, name: str = "") -> Settings:
    """Dotted names of a nested config; each part has its own entry: its class, or True."""
    if not isinstance(value, dict):
        return {name: int(value) if isinstance(value, float) and value.is_integer() else value}
    is_part = name and not name.endswith(".init_args")
    flat = {name: value.get("class_path") or bool(value)} if is_part else {}
    for part, each in value.items():
        if part != "class_path" and not (part == "init_args" and not isinstance(each, dict)):
            flat |= _flatten(each, f"{name}.{part}" if name else part)
    return flat


def _draws_text(data: dict[str, Any]) -> bool:
    """Whether a seed decides on the text, or on the split of pairs."""
    corpus, val = data.get("corpus"), data.get("val")
    sources = [*(corpus.values() if isinstance(corpus, dict) else [corpus]), val]
    return bool(data.get("pairs")) or any(GENERATED.fullmatch(str(each)) for each in sources)


def _acting(callbacks: Any) -> Any:
    """The callbacks that may change a result."""
    if callbacks is None:
        return None
    each = callbacks if isinstance(callbacks, list) else [callbacks]
    return [callback for callback in each if not _observes(callback)] or None


def _observes(callback: Any) -> bool:
    path = str(callback.get("class_path") if isinstance(callback, dict) else callback)
    return path.rpartition(".")[2] in OBSERVERS and ("." not in path or path.startswith(OURS))


def _matters(name: str, value: Any, keep: Collection[str]) -> bool:
    """Whether a setting affects the result: all but free ones. An unknown strategy or accelerator may affect it."""
    if any(inside(name, kept) for kept in keep):
        return True
    foreign = name in DEVICES and isinstance(value, str) and "." in value and not value.startswith(OURS)
    return foreign or not any(inside(name, free) for free in FREE)


def inside(name: str, part: str) -> bool:
    """Whether a dotted name belongs to a part or to an option of it."""
    return f"{name}.".startswith(f"{part}.")


def alike(runs: Iterable[Settings]) -> list[Settings]:
    """Settings completed by the entries that older runs lack, so that they can be compared.

    A network gets ModelConfig's defaults, as when it is loaded. Any other missing option counts as off if it is off in
    another run; otherwise it remains a difference.
    """
    runs = [dict(run) for run in runs]
    names = {name for run in runs for name in run}
    for network in [name for name in names if name.endswith("model.network")]:
        known = [{name for name in run if inside(name, network)} for run in runs if run.get(network) is True]
        if any(each != known[0] for each in known):
            from tinylm.model import ModelConfig  # PyTorch takes a second

            defaults = _flatten(ModelConfig(vocab_size=1).to_dict(), network)
            for run in (run for run in runs if run.get(network) is True):
                missing = {name: value for name, value in defaults.items() if name not in run}
                run |= {name: value for name, value in missing.items() if not name.endswith("vocab_size")}
    off = {name: run[name] for run in runs for name in run if run[name] in (None, False, 0, [])}
    for run in runs:
        for name in off.keys() - run.keys():
            run[name] = off[name]
    return runs


def key(run: Settings) -> str:
    """A text that is equal for equal settings only."""
    return json.dumps(run, sort_keys=True, default=str)


# --- differences, in words


def differences(runs: Sequence[Settings]) -> list[str]:
    """The names of the settings in which runs differ, the usual ones first.

    If some runs lack a part or have it of another class, its settings differ only if runs with the same part differ.
    """
    names = dict.fromkeys([*USUAL, *(name for run in runs for name in run)])
    return [name for name in names if _differs(name, runs)]


def _differs(name: str, runs: Sequence[Settings]) -> bool:
    found: dict[str, set[str]] = {}
    for run in runs:
        parts = [name[:place] for place, letter in enumerate(name) if letter == "."]
        whole = key({part: run.get(part) for part in parts if part.rpartition(".")[2] != "init_args"})
        found.setdefault(whole, set()).add(key({"": run.get(name)}))
    return any(len(values) > 1 for values in found.values())


def words(name: str, names: Collection[str]) -> str:
    """The word for a setting: the last part of its name, or the whole name if another name ends alike."""
    short = {each: _short(each) for each in names}
    alone = list(short.values()).count(short[name]) == 1
    return short[name] if alone else name


def _short(name: str) -> str:
    if name.startswith(f"{PARENT}."):
        return f"parent's {_short(name.removeprefix(f'{PARENT}.'))}"
    return USUAL.get(name, name.rpartition(".")[2])


def shown(value: Any) -> str:
    """A value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return "+".join(map(shown, value)) or "none"
    if isinstance(value, dict):
        return shown(value.get("class_path") or json.dumps(value, default=str))
    if isinstance(value, float):
        return f"{value:.12g}"
    text = "none" if value is None else str(value)
    return text.rpartition(".")[2] if _is_class(value) else text


def _is_class(value: Any) -> bool:
    return isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split("."))


def labels(runs: Sequence[Settings]) -> list[str]:
    """Labels that distinguish runs by their differences, such as `lr 0.003, width 32`.

    They are empty for runs that do not differ, and for runs that differ in more than `MOST` settings.
    """
    names = differences(runs)
    if len(names) > MOST:
        return [""] * len(runs)
    return [", ".join(_phrase(name, run, names, runs) for name in names if _has(run, name, names)) for run in runs]


def _has(run: Settings, name: str, names: Collection[str]) -> bool:
    """Whether a run has the part to which a setting belongs, if runs differ in this part."""
    return all(run.get(part) for part in names if part != name and inside(name, part))


def _phrase(name: str, run: Settings, names: Collection[str], runs: Sequence[Settings]) -> str:
    value, others = run.get(name), [each.get(name) for each in runs]
    if name == PARENT:
        return value or "from scratch"
    text = shown(value)
    if value is True and any(isinstance(other, str) for other in others):
        parts = [each.rpartition(".")[2] for each in run if each.rpartition(".")[0] == name]
        text = run.get(f"{name}.name") or ("+".join(parts) if 0 < len(parts) < 4 else "default")
    elif value is None and any(map(_is_class, others)):
        text = "default"
    elif True in others and value is None:
        text = "off"
    elif any(other != value and shown(other) == text for other in others):
        text = str(value)  # another class of the same name
    return f"{words(name, names)} {text}"
