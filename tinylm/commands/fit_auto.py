"""`tinylm fit -c auto --budget 10min`: chooses the best config for a budget, writes it to auto.yaml and runs it.

Options of the command line are kept, and the others are chosen. Nothing is chosen on `--resume`, which continues with
the run's own config.
"""

import atexit
import os
import shutil
import tempfile
import time
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tinylm.chosen import PARTS, chosen_path, given_configs, names_class
from tinylm.commands.fit_check import check_options, given_values
from tinylm.console import duration, process_rank
from tinylm.errors import CannotCreateError, ConfigError, disk_problem, notice
from tinylm.files import write_text

if TYPE_CHECKING:
    from tinylm.experiments.dial import Choice

AUTO, OPTIONS = "auto", ("--budget", "--params")
CHOSEN = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "run.seconds", "trainer.limit_train_batches")
UNKNOWN = {  # options that the law does not cover
    "model.init_from": "a base model has its own size",
    "model.lora": "adapters need a base model",
    "model.freeze": "frozen weights need a base model",
    "data.pairs": "pairs are for finetuning",
    "data.streaming": "a stream has no known size",
    "data.batch_schedule": "the law's batches are of one size",
    "data.context_schedule": "the law's sequences are of one length",
    "data.subword_alpha": "the law was measured with one segmentation per text",
}
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "RANK")


def resolve(words: list[str]) -> list[str]:
    """Replaces `-c auto` and its budget by the config that is chosen.

    Args:
        words: options of `fit`

    Raises:
        ConfigError: if the budget is missing, given twice or without `-c auto`, or an option contradicts it.
    """
    started = time.perf_counter()
    budgets, others = _take(words)
    if AUTO not in given_configs(words) or (not budgets and Path("auto.yaml").is_file()):
        if budgets:
            name = next(iter(budgets))
            raise ConfigError(f"{name}: works with -c auto only, as in -c auto {name} {budgets[name]}")
        return words
    if any(word.partition("=")[0] == "--resume" for word in words):
        return _without_auto(others)
    if len(budgets) != 1:
        problem = "--budget and --params: give one of the two" if budgets else "-c auto: needs a budget"
        raise ConfigError(f"{problem}, as in --budget 10min, --budget 1e15flops or --params 2M")
    choice = _choose(budgets, others, started)
    text = config_text(choice, " ".join(f"{name} {value}" for name, value in budgets.items()))
    shown = any(word.startswith("--print_config") for word in words)
    path = _temporary(text) if shown else _write(text)
    _announce(choice, None if shown else path)
    return _with_config(others, str(path))


def _take(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The budgets of a command line, and its other words."""
    budgets: dict[str, str] = {}
    others: list[str] = []
    place = iter(words)
    for word in place:
        name, given, value = word.partition("=")
        if name in OPTIONS:
            value = value if given else next(place, "")
            if not value or value.startswith("-"):
                raise ConfigError(f"{name}: its value is missing")
            budgets[name] = value
        else:
            others.append(word)
    return budgets, others


def _with_config(words: list[str], path: str | None) -> list[str]:
    """The words with another config instead of `-c auto`; None: without a config."""
    found: list[str] = []
    skip = False
    for word, following in pairwise([*words, ""]):
        if skip:
            skip = False
        elif word in ("-c", "--config") and following == AUTO:
            found += [] if path is None else ["--config", path]
            skip = True
        elif word in (f"--config={AUTO}", f"-c{AUTO}", f"-c={AUTO}"):
            found += [] if path is None else ["--config", path]
        else:
            found.append(word)
    return found


def _without_auto(words: list[str]) -> list[str]:
    """The words of `--resume`, with the run of this name unless another is given."""
    others = _with_config(words, None)
    named = any(word.startswith(("--resume=", "--run.name")) for word in others)
    valued = any(word == "--resume" and after and after[0] != "-" for word, after in pairwise([*others, ""]))
    return others if named or valued else [*others, "--run.name", AUTO]


# --- the choice


def _choose(budgets: dict[str, str], words: list[str], started: float) -> "Choice":
    """Checks the options and chooses the run."""
    if process_rank() > 0 or any(name in os.environ for name in LAUNCHERS):
        raise ConfigError("-c auto: chooses before processes are launched; run it alone, then launch auto.yaml")
    from tinylm.experiments.budget import Budget

    name, value = next(iter(budgets.items()))
    budget = Budget.read(value) if name == "--budget" else Budget.read_parameters(value)
    plain = _with_config(words, None)
    check_options("fit", [word for word in plain if word != "--debug"])
    given = given_values(plain)
    _check_given(given, plain, name)

    from tinylm.experiments.dial import Dial
    from tinylm.training.cli import quiet_lightning

    quiet_lightning()
    return Dial(budget, given, started).choose()


def _check_given(given: dict[str, Any], words: list[str], budget: str) -> None:
    """Refuses options that the budget determines, or that the law does not cover."""
    for name in CHOSEN:
        if name in given:
            raise ConfigError(f"{name}: -c auto chooses it by {budget}; leave one of the two out")
    for name, reason in UNKNOWN.items():
        if any(
            each == name or each.startswith(f"{name}.") for each, value in given.items() if value not in (None, False)
        ):
            raise ConfigError(f"{name}: does not work with -c auto: {reason}; leave it out")
    if str(given.get("trainer.devices", 1)) not in ("1", "auto"):
        raise ConfigError("trainer.devices: -c auto measures one device; leave it out, then train auto.yaml on several")
    classes = [f"{part}.class_path" for part in PARTS if chosen_path(part, words) is not None]
    classes += [name for name in ("model.optimizer", "model.schedule") if names_class(name, words)]
    if classes:
        raise ConfigError(f"{classes[0]}: does not work with -c auto: the law does not cover classes of your own")


# --- the config


def config_text(choice: "Choice", budget: str) -> str:
    """The config, with the expected results at its head."""
    day = datetime.now().astimezone().isoformat(" ", "minutes")[:16]
    lines = [
        f"# Chosen by tinylm fit -c auto {budget}, on {day}, by the speed of this machine.",
        f"# Expected: {promise(choice)}.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(choice.values, sort_keys=False, default_flow_style=None, width=110)


def promise(choice: "Choice") -> str:
    """Loss, time and memory to expect."""
    loss = f"loss not predicted ({choice.reason})"
    if choice.expected is not None and choice.floor is not None:
        loss, low, high = choice.expected
        above = loss / choice.floor - 1
        loss = f"validation loss {loss:.4f} ({low:.4f} to {high:.4f}), {above:.1%} above the best possible"
    time = duration(choice.seconds)
    time = f"{time} in all" if "seconds" in choice.values["run"] else f"about {time} in all"
    return f"{loss}; {time}; memory {choice.memory / 1e9:.2f} GB"


def _announce(choice: "Choice", path: Path | None) -> None:
    """Prints the choice."""
    network, data, trainer = choice.values["model"]["network"], choice.values["data"], choice.values["trainer"]
    size = f"width {network['d_model']}, {network['num_layers']} layers, {choice.parameters:,} parameters"
    steps = f"{trainer['max_steps']:,} steps of {data['batch_size']} x {network['max_seq_len']} tokens"
    notice(f"auto: {size}; {steps} ({choice.epochs:.1f} epochs of {data['corpus']})")
    ends = datetime.now().astimezone() + timedelta(seconds=choice.seconds)
    notice(f"auto: expected: {promise(choice)}: until {ends:%H:%M:%S}")
    if path is not None:
        notice(f"auto: the config is {path}; it can be edited, and run again by -c {path}")


def _temporary(text: str) -> Path:
    """A file that this process removes at exit."""
    folder = Path(tempfile.mkdtemp(prefix="tinylm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_text(folder / f"{AUTO}.yaml", text)
    return folder / f"{AUTO}.yaml"


def _write(text: str) -> Path:
    """Writes the config to auto.yaml, or to the next free name."""
    number = 1
    while True:
        path = Path(f"{AUTO}.yaml" if number == 1 else f"{AUTO}-{number}.yaml")
        if not path.exists():
            try:
                write_text(path, text)
            except OSError as error:
                if disk_problem(error):
                    raise
                raise CannotCreateError(
                    f"{path}: cannot be created ({error.strerror}); run it in another folder"
                ) from error
            return path
        number += 1
