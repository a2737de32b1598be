"""Loggers that receive more than numbers: samples, checkpoints, the finished files, and the failure of a run."""

from pathlib import Path

import lightning.pytorch as pl


class Tracker:
    """A logger that also receives samples and, at the end, files."""

    def log_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Logs the (prompt, text) pairs generated after a step."""

    def log_files(self, folder: Path) -> None:
        """Logs the files of a finished run."""

    def log_checkpoint(self, path: Path, step: int) -> None:
        """Logs a checkpoint that was saved after a step."""

    def log_failure(self, error: BaseException) -> None:
        """Reports the exception that ends a run."""


def trackers(trainer: pl.Trainer) -> list[Tracker]:
    """The trackers among the trainer's loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
