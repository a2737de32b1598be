"""Checkpoints that are either complete or absent, and verified when they are read.

Lightning writes a checkpoint to a temporary folder and moves it; on another file system that is a copy, which a kill or
a full disk can truncate. Here it is written beside its target, sealed with its SHA-256, flushed, and renamed.
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


def stop_agreed(module: Any) -> bool:
    """Whether all processes have agreed to stop after this step."""
    return any(getattr(module, "stop_agreed", ()))


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether a validation follows this micro-batch."""
    fit_loop: Any = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints with `atomic_write` and reads them with `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            StorageError: if the disk fails or is full. The earlier checkpoint of this name stays intact.
        """
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
            seal_zip(file)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Reads and verifies a checkpoint; never executes anything in it, whatever `weights_only` is."""
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the checkpoint with the lowest validation loss."""

    def __init__(self, monitor: str = "val/loss", mode: str = "min", dirpath: str | None = None) -> None:
        """Creates the callback.

        Args:
            monitor: Metric to compare
            mode: min or max
            dirpath: Folder of the file. Default: `checkpoints` in the run folder
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
    """Keeps `last.ckpt`, the newest checkpoint: saved regularly, at the end, and when a stop was requested."""

    def __init__(self, every_n_train_steps: int = 100, dirpath: str | None = None) -> None:
        """Creates the callback.

        Args:
            every_n_train_steps: Optimizer steps between saves
            dirpath: Folder of the file. Default: `checkpoints` in the run folder
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
        """Saves after whole optimizer steps only, since no other state can be resumed exactly.

        If a validation follows, it saves after that, so that a run killed during the validation repeats it.
        """
        if not finished_step(trainer, batch_idx) or validation_follows(trainer):
            return
        if stop_agreed(pl_module):
            self.save_now(trainer)
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if a save was due when the validation began."""
        due = trainer.global_step % self._every_n_train_steps == 0 or stop_agreed(pl_module)
        if due and not trainer.sanity_checking:
            self.save_now(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the final state."""
        self.save_now(trainer)

    def save_now(self, trainer: pl.Trainer) -> None:
        """Saves unless this step has been saved already."""
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
            self._last_global_step_saved = trainer.global_step


class ConfigRecord(Callback):
    """Stores the whole config in every checkpoint, and reports configuration changes on resume."""

    KEY = "tinylm_config"
    PARTS = ("model.", "data.", "trainer.", "seed_everything")
    WITHOUT = ("model.network.vocab_size", "data.cache_dir", "data.num_workers", "trainer.logger", "trainer.callbacks",
               "trainer.enable_")  # fmt: skip

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the config."""
        checkpoint[self.KEY] = self.config

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Reports the differences in one line."""
        if changes := self.differences(checkpoint.get(self.KEY, self.config)):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """The changes of everything that affects the computation, such as `model.optimizer.lr 0.01 -> 0.02`."""
        before, now = flat_config(earlier), flat_config(self.config)
        names = [name for name in before | now if name.startswith(self.PARTS) and not name.startswith(self.WITHOUT)]
        pairs = [(name, before.get(name), now.get(name)) for name in names]
        return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def newest_good_checkpoint(run_folder: Path) -> tuple[Path, int]:
    """Finds the newest undamaged checkpoint among `last.ckpt` and `best.ckpt`; returns it and its step.

    Raises:
        MissingInputError: if there is none.
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
            notice(f"warning: {problem}; resuming from {newest} (step {steps[newest]})")
        return newest, steps[newest]
    if problems:
        raise DataError("; ".join(problems))
    raise MissingInputError(f"{run_folder}: has no checkpoint to resume from; leave out --resume to start over")
