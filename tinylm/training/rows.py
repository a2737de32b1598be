"""The optimizer step at which Lightning logs a metric.

Lightning numbers a row by the steps completed before it: `self.log` after step 10 writes row 9, and so does a
validation after step 10. tinylm numbers it 10, the steps completed with it, so that the metrics of callbacks and
subclasses share a row with the loss of the same step.
"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector


def row_is_due(trainer: pl.Trainer, step: int) -> bool:
    """Whether the metrics of a step are logged, by `is_logged`."""
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    data = getattr(trainer, "datamodule", None)
    return is_logged(step, every, getattr(data, "total_steps", None))


def is_logged(step: int, every: int, last: int | None = None) -> bool:
    """Whether a step is logged: the last, every `every`-th, and a few more before the first of these.

    A small model learns most in its first steps, so the start of a run's curve gets a few more rows.

    >>> [step for step in range(1, 200) if is_logged(step, 50)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40, 50, 100, 150]
    """
    if every <= 0:
        return False
    return step == last or step % every == 0 or (step < every and step % 10 ** (len(str(step)) - 1) == 0)


class _Loop(_TrainingEpochLoop):
    """Numbers rows by the optimizer step that is being computed or, between two, by the one before."""

    @property
    def _batches_that_stepped(self) -> int:
        batches: Any = self.batch_progress.current
        within = batches.ready > batches.processed or (self.trainer.training and self._should_accumulate())
        return self.global_step + within

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ignores Lightning's own count."""


class _Connector(_LoggerConnector):
    """Logs in the steps in which the loss is logged."""

    @property
    def should_update_logs(self) -> bool:
        if not isinstance(self.trainer._active_loop, _FitLoop):
            return super().should_update_logs
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        return row_is_due(self.trainer, step) or bool(self.trainer.should_stop)


def number_rows(trainer: pl.Trainer) -> None:
    """Gives the rows that Lightning logs in `fit` the number of their optimizer step."""
    loop: Any = trainer.fit_loop.epoch_loop
    connector: Any = trainer._logger_connector
    if type(loop) is _TrainingEpochLoop:
        loop.__class__ = _Loop
    if type(connector) is _LoggerConnector:
        connector.__class__ = _Connector
