"""The callbacks and loggers of a run: those of the config, and those that every run has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger

from tinylm.errors import ConfigError
from tinylm.training.checkpoint import BestCheckpoint, LastCheckpoint
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.progress import Progress


def all_callbacks(trainer: Any, ours: Sequence[Callback], folder: Path) -> list[Callback]:
    """The callbacks of the config, then `ours`, unless the config lists one of the kind or switches it off.

    Args:
        trainer: the config of the Trainer
        ours: the callbacks that every run has
        folder: the run folder, for the files of checkpoint callbacks
    """
    callbacks = list(as_list(trainer.callbacks or []))
    shown = trainer.enable_progress_bar is not False and not any(isinstance(each, ProgressBar) for each in callbacks)
    for callback in ours:
        wanted = shown or not isinstance(callback, Progress)
        wanted = wanted and (trainer.enable_checkpointing is not False or not _is_ours(callback))
        if wanted and not any(type(other) is type(callback) for other in callbacks):
            callbacks.append(callback)
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            _place(callback, folder / "checkpoints")
    return callbacks


def _place(callback: ModelCheckpoint, folder: Path) -> None:
    """Puts the files of a checkpoint callback into a folder, unless its config says where."""
    if callback.dirpath is None:
        callback.dirpath = str(folder.resolve())
    taken = callback.filename in ("best", "last") or callback.save_last
    if not _is_ours(callback) and Path(callback.dirpath).resolve() == folder.resolve() and taken:
        raise ConfigError(
            "trainer.callbacks: a ModelCheckpoint must not write best.ckpt or last.ckpt, which every run has; "
            "leave out save_last, and choose another filename or dirpath"
        )


def _is_ours(callback: Any) -> bool:
    return isinstance(callback, BestCheckpoint | LastCheckpoint)


def all_loggers(configured: Any, folder: Path) -> list[Logger] | bool:
    """metrics.csv, and the loggers of the config; False if the config wants none."""
    if configured is False:
        return False
    others = configured if isinstance(configured, list) else [configured] if isinstance(configured, Logger) else []
    return [MetricsCSV(folder), *others]


def replace_folder(trainer: Any, old: str, new: str) -> None:
    """Replaces a folder, at first "{run}", in the arguments of the loggers and callbacks of a config."""
    for part in [*as_list(trainer.logger), *as_list(trainer.callbacks)]:
        arguments = getattr(part, "init_args", None) or {}
        for name in ("save_dir", "dirpath", "folder"):
            if arguments.get(name) == old:
                arguments[name] = new


def as_list(value: Any) -> list[Any]:
    """A list as it is; any other value as the only item of one."""
    return value if isinstance(value, list) else [value]
