"""Checkpoints that are whole or absent, and checked when they are read.

Lightning writes a checkpoint to a temporary folder and moves it, which on another file system is a copy that a kill or
a full disk cuts short. Here it is written beside its target, sealed with its SHA-256, flushed, and renamed.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tinylm.bundle import read_checkpoint
from tinylm.errors import DataError, MissingInputError, notice
from tinylm.files import atomic_write, seal_zip
from tinylm.runs.compare import flat_config


def finished_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether this micro-batch is the last before a validation. (Lightning decides it by what is asked here.)"""
    fit_loop: Any = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to disk and back, by `atomic_write` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            StorageError: if the disk fails or is full; the earlier checkpoint of this name is intact.
        """
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
            seal_zip(file)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Reads and checks a checkpoint; nothing in it is executed, whatever `weights_only` says."""
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`: the one of the lowest validation loss."""

    def __init__(self, monitor: str = "val/loss", mode: str = "min", dirpath: str | None = None) -> None:
        """The best checkpoint.

        Args:
            monitor: the metric that decides
            mode: min or max
            dirpath: the folder. Empty: `checkpoints` in the run's folder
        """
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: the newest, every so many steps and at the end."""

    def __init__(self, every_n_train_steps: int = 100, dirpath: str | None = None) -> None:
        """The newest checkpoint.

        Args:
            every_n_train_steps: optimizer steps between two saves
            dirpath: the folder. Empty: `checkpoints` in the run's folder
        """
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after whole optimizer steps only: inside an accumulation window a state cannot be resumed exactly.

        Where a validation follows, it saves after that: a run that is killed in it does it again.
        """
        if finished_step(trainer, batch_idx) and not validation_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, if it was time to when the validation began."""
        if not trainer.sanity_checking and trainer.global_step % self._every_n_train_steps == 0:
            self.save_now(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of the run."""
        self.save_now(trainer)

    def save_now(self, trainer: pl.Trainer) -> None:
        """Saves, unless this step is saved already."""
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
            self._last_global_step_saved = trainer.global_step


class ConfigRecord(Callback):
    """Keeps the run's whole config in every checkpoint, and tells what is different where a run goes on."""

    KEY = "tinylm_config"
    PARTS = ("model.", "data.", "trainer.", "seed_everything")
    WITHOUT = ("data.cache_dir", "data.num_workers", "trainer.logger", "trainer.callbacks", "trainer.enable_")

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds it."""
        checkpoint[self.KEY] = self.config

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Tells the differences in one line."""
        if changes := self.differences(checkpoint.get(self.KEY, self.config)):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """`model.optimizer.lr 0.01 -> 0.02`, for everything that decides what the run computes."""
        before, now = flat_config(earlier), flat_config(self.config)
        names = [name for name in before | now if name.startswith(self.PARTS) and not name.startswith(self.WITHOUT)]
        pairs = [(name, before.get(name), now.get(name)) for name in names]
        return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def newest_good_checkpoint(run_folder: Path) -> tuple[Path, int]:
    """The checkpoint to resume a run from, and its step: the newest of `last.ckpt` and `best.ckpt` that is undamaged.

    Raises:
        MissingInputError: if there is none at all.
        DataError: if all are damaged.
    """
    paths = [run_folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    steps, problems = {}, []
    for path in filter(Path.is_file, paths):
        try:
            steps[path] = read_checkpoint(path)["global_step"]
        except DataError as error:
            problems.append(str(error))
    if steps:
        newest = max(steps, key=lambda path: steps[path])
        for problem in problems:
            notice(f"warning: {problem}; going on from {newest} (step {steps[newest]})")
        return newest, steps[newest]
    if problems:
        raise DataError("; ".join(problems))
    raise MissingInputError(f"{run_folder}: there is no checkpoint to resume from; leave out --resume to start afresh")
