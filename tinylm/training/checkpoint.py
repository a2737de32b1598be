"""Checkpoints that are either complete or absent, and verified when they are read.

Lightning writes a checkpoint to a temporary folder and moves it; between file systems the move is a copy, which a kill
or a full disk can truncate. Here it is written beside its target, sealed with its SHA-256, flushed, and renamed.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tinylm.bundle import read_checkpoint
from tinylm.errors import ConfigError
from tinylm.files import atomic_write, seal_zip
from tinylm.shards import KEY, remove_shards
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.trackers import trackers


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


def check_validated(trainer: pl.Trainer) -> None:
    """Refuses a callback that monitors the validation of a run that has none.

    Raises:
        ConfigError: naming the callback.
    """
    if trainer.limit_val_batches != 0:
        return
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("val/") and not isinstance(callback, BestCheckpoint):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, and the run has no validation; "
                "leave it out, or validate (data.split, data.val, trainer.limit_val_batches)"
            )


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
        remove_shards(Path(path), keep=checkpoint.get(KEY, {}).get("folder"))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, with its shards."""
        super().remove_checkpoint(path)
        remove_shards(Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Reads and verifies a checkpoint; never executes anything in it, whatever `weights_only` is."""
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the checkpoint with the lowest validation loss; a run without a validation has none."""

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        """Creates the callback.

        Args:
            monitor: Metric to compare
            mode: min or max
        """
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            # after every validation, including the one of the last step, which comes after the epoch
            save_on_train_epoch_end=False if monitor.startswith("val/") else None,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state, with the score of the last validation, which Lightning leaves out."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, the newest checkpoint.

    It is saved regularly, before every validation, at the end, and when a stop was requested.
    """

    def __init__(self, every_n_train_steps: int = 100) -> None:
        """Creates the callback.

        Args:
            every_n_train_steps: Optimizer steps between saves; 0 = only before validations and at the end
        """
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._saved: tuple[int, bool] | None = None  # step, and whether a validation had begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that the state is saved already if the run is resumed from `last.ckpt`."""
        if self._saved is None and trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.path:
            self._saved = (trainer.global_step, False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after whole optimizer steps only, since no other state can be resumed exactly."""
        if not finished_step(trainer, batch_idx) or validation_follows(trainer):
            return
        every, step = self._every_n_train_steps, trainer.global_step
        if stop_agreed(pl_module) or (every > 0 and step % every == 0):
            self.save_now(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the training state; a run that is stopped or killed during the validation repeats the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save_now(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does nothing: a validation changes no weights."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the final state."""
        self.save_now(trainer)

    def save_now(self, trainer: pl.Trainer) -> None:
        """Saves unless this state has been saved already."""
        state = (trainer.global_step, bool(trainer.validating))
        if self._saved != state:
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCSV):
                    logger.sync()
            trainer.save_checkpoint(self.path)
            self._saved = state
            for tracker in trackers(trainer):
                tracker.log_checkpoint(self.path, trainer.global_step)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(str(self.dirpath)) / "last.ckpt"
