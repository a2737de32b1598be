"""The start of a W&B run: mode, settings, group, job type and axes, and wandb's errors in one line."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from tinylm.errors import ConfigError, StorageError
from tinylm.files import sha256_json
from tinylm.runs.lineage import Counter
from tinylm.runs.settings import flat_config, settings_of
from tinylm.training.throughput import training_flops
from tinylm.training.wandb_log import STEP

INIT_SECONDS = 30.0  # wandb's default is 90
FLUSH_SECONDS = 0.5  # of an offline run; all that a SIGKILL can lose. wandb's default is 15
TOKENS, FLOPS = "trainer/tokens", "trainer/flops"
BEST = {"val/loss": "min", "val/perplexity": "min", "val/bpb": "min", "val/accuracy": "max"}
REFUSED = ("WANDB_FORK_FROM", "WANDB_RESUME_FROM")


def choose_mode(asked: str | None) -> tuple[str, str]:
    """The mode, and the reason for the notice if the user did not choose it. Never prompts."""
    import wandb

    asked = asked or os.environ.get("WANDB_MODE")
    if asked:
        return {"dryrun": "offline", "run": "online"}.get(asked, asked), ""
    if wandb.login(prompt=False, verify=False):
        return "online", ""
    return "offline", ", without an API key (set WANDB_API_KEY, or wandb login)"


def settings_of_run(console: bool) -> Any:
    """Settings under which wandb prints nothing but may copy the console's output; errors arrive as exceptions."""
    import wandb

    settings = wandb.Settings(silent=True, console="wrap_raw" if console else "off")
    settings.init_timeout = float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_SECONDS)
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # older versions flush every record
        settings.x_transaction_log_flush_interval = FLUSH_SECONDS
    return settings


def check_environment() -> None:
    """Deletes empty variables (an empty WANDB_SILENT crashes wandb), and refuses variables that a run cannot obey."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    for name in REFUSED:
        if name in os.environ:
            problem = "a run resumes from a checkpoint, and its W&B run by the id in its folder"
            remedy = "unset it, then --resume the run, or start a new one from a checkpoint with --ckpt_path"
            raise ConfigError(f"{name}: {problem}; {remedy}")


def group_name(config: dict[str, Any]) -> str:
    """The group of a run, shared by all runs whose configs differ in nothing but the seed.

    >>> network, data = {"num_layers": 4, "d_model": 128}, {"corpus": "texts/fox.txt"}
    >>> group_name({"model": {"network": network, "optimizer": {"name": "adamw", "lr": 0.003}}, "data": data})
    'fox-4x128-adamw-lr0.003-0e57f4'
    """
    flat, words = flat_config(config), []
    if corpus := flat.get("data.corpus"):
        words.append(Path(str(corpus)).stem if isinstance(corpus, str) else "mixture")
    if "model.network.d_model" in flat:
        words.append(f"{flat.get('model.network.num_layers')}x{flat['model.network.d_model']}")
    words += [str(flat["model.optimizer.name"])] if "model.optimizer.name" in flat else []
    words += [f"lr{flat['model.optimizer.lr']}"] if "model.optimizer.lr" in flat else []
    return "-".join([*words, sha256_json(settings_of(config))[:6]])


def job_type(config: dict[str, Any]) -> str:
    """`lora`, `finetune` or `train`."""
    model = config.get("model") or {}
    return "lora" if model.get("lora") else "finetune" if model.get("init_from") else "train"


def check_sweep(config: dict[str, Any]) -> None:
    """Refuses a run of a sweep whose config lacks the values that the sweep chose.

    Raises:
        ConfigError: naming the parameter.
    """
    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
    if not path.is_file():
        return
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    chosen = {name: entry["value"] for name, entry in entries.items() if isinstance(entry, dict) and "value" in entry}
    flat = flat_config(config)
    for name, value in flat_config(chosen).items():
        if name not in flat:
            raise ConfigError(f"sweep parameter {name}: no such option; give its dotted name, as in fit --help")
        if not _same(value, flat[name]):
            problem = f"sweep parameter {name}: the sweep chose {value}, the run has {flat[name]}"
            raise ConfigError(f"{problem}; make ${{args}} the last word of the sweep's command")


def _same(chosen: Any, value: Any) -> bool:
    """Whether a value of a sweep, which may be written as a string, is that of an option."""
    if chosen == value or str(chosen) == str(value):
        return True
    try:
        return float(chosen) == float(value)
    except (TypeError, ValueError):
        return isinstance(chosen, str) and yaml.safe_load(chosen) == value


def define_axes(run: Any) -> None:
    """Makes tokens and FLOPs metrics, and summarizes validation metrics by the best value."""
    for name in (TOKENS, FLOPS):
        run.define_metric(name, step_metric=STEP, summary="max")
    for name, summary in BEST.items():
        run.define_metric(name, step_metric=STEP, summary=summary)


def step_cost(module: Any) -> tuple[Counter | None, int]:
    """The function from steps to their tokens (None if it is not known), and training FLOPs of a token."""
    data = getattr(module.trainer, "datamodule", None)
    sizes = getattr(data, "batch_sizes", None)  # a data module of someone else's may have none
    if sizes is None or not sizes.final or (getattr(data, "pairs", None) and not getattr(data, "packing", False)):
        return None, 0
    return lambda steps: sizes.total(steps) * module.network.max_seq_len, training_flops(module)


def plain_error(error: Exception) -> ConfigError | StorageError:
    """Turns an error of wandb into one line with a remedy."""
    from pydantic import ValidationError
    from wandb.errors import AuthenticationError, UsageError

    if isinstance(error, ValidationError):
        (name, *_), wrong = error.errors()[0]["loc"], error.errors()[0]
        return ConfigError(f"WANDB_{str(name).upper()}: {wrong['msg']}, got {wrong['input']!r}; correct or unset it")
    remedy = "or add --trainer.logger.mode offline"
    text = re.sub(r"\s+", " ", str(error)).strip()
    refused = isinstance(error, AuthenticationError | UsageError)
    if refused or re.search(r"\b(40[013]|api key|permission|not logged in)\b", text, re.IGNORECASE):
        return ConfigError(f"trainer.logger: W&B refuses the run ({text}); wandb login with a valid key, {remedy}")
    return StorageError(f"trainer.logger: W&B cannot be reached ({text}); try again when the network is back, {remedy}")
