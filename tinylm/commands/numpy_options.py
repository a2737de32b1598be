"""The options of `tinylm train-numpy`: the Trainer's are honoured, refused, or without effect."""

from pathlib import Path
from typing import Any

import numpy as np

from tinylm.chosen import GROUPS, PARTS, chosen_path, names_class
from tinylm.errors import ConfigError, notice
from tinylm.training.preflight import check_trainer

HONOURED = (
    "max_steps", "max_epochs", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch",
    "log_every_n_steps", "precision", "callbacks", "enable_progress_bar", "accumulate_grad_batches",
)  # fmt: skip
# they would change the result
REFUSED = (
    "strategy", "devices", "num_nodes", "fast_dev_run", "min_epochs", "min_steps", "max_time", "limit_train_batches",
    "limit_val_batches", "overfit_batches", "gradient_clip_algorithm", "enable_checkpointing", "plugins",
)  # fmt: skip
PRECISIONS = {"None": np.float32, "32": np.float32, "32-true": np.float32, "64": np.float64, "64-true": np.float64}
NOT_HERE = "not available in the NumPy twin; leave it out, or use tinylm fit"


def check(config: Any, defaults: Any) -> None:
    """Refuses options that the twin lacks, and lists those without effect.

    Raises:
        ConfigError: naming the option.
    """
    for name in ("objective", "compile", "init_from", "lora", "freeze", "loss_rows", "vocab_multiple"):
        if config.model[name]:
            raise ConfigError(f"model.{name}: {NOT_HERE}")
    if config.model.optimizer.ns_dtype != "auto":
        raise ConfigError(f"model.optimizer.ns_dtype: {NOT_HERE}")
    if config.run.seconds is not None:
        raise ConfigError(f"run.seconds: {NOT_HERE}")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {config.threads}")
    _check_trainer(config.trainer, defaults.trainer)
    if config.data.packing and not config.model.network.document_mask:
        raise ConfigError("data.packing: needs model.network.document_mask to keep pairs apart")
    if config.model.schedule.min_lr > config.model.optimizer.lr:
        rates = f"min_lr={config.model.schedule.min_lr} and lr={config.model.optimizer.lr}"
        raise ConfigError(f"min_lr must not exceed lr, got {rates}")


def _check_trainer(trainer: Any, defaults: Any) -> None:
    if str(trainer.precision) not in PRECISIONS:
        raise ConfigError(f"trainer.precision must be 32-true or 64-true in NumPy, got {trainer.precision}")
    given = [name for name in vars(trainer) if trainer[name] != defaults[name]]
    for name in given:
        allowed = {"devices": ("1",), "limit_val_batches": ("0", "0.0")}.get(name, ())
        if name in REFUSED and str(trainer[name]) not in allowed:
            raise ConfigError(f"trainer.{name}: {NOT_HERE}")
    unused = [f"trainer.{name}" for name in given if name not in (*HONOURED, *REFUSED)]
    unused = [name for name in unused if name != "trainer.accelerator" or trainer.accelerator != "cpu"]
    unused += [each.class_path for each in trainer.callbacks or [] if not is_last_checkpoint(each)]
    if unused:
        notice(f"without effect in the NumPy twin: {', '.join(unused)}")
    check_trainer(trainer)


def refuse_classes(words: list[str]) -> None:
    """Refuses the user's own classes, for which the twin has no gradients, before they are parsed.

    Raises:
        ConfigError: naming the option.
    """
    chosen = [f"{part}.class_path" for part in PARTS if chosen_path(part, words) is not None]
    for name in [*chosen, *(option for option in GROUPS if names_class(option, words))]:
        raise ConfigError(f"{name}: a class is {NOT_HERE}")


def is_last_checkpoint(callback: Any) -> bool:
    """Whether a callback of the config is the one that sets how often to save."""
    return callback.class_path.endswith(".LastCheckpoint")


def stem_of(config: Any) -> str:
    """The default name of the run."""
    return (Path(str(config.config[0])).stem if config.config else "run") + "-numpy"
