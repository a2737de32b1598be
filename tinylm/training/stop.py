"""GracefulStop: ends a run at a whole step when a signal arrives."""

import os
import signal
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinylm.data.stream_content import StreamContent
from tinylm.errors import Interrupted, Preempted
from tinylm.signals import SIGNALS, quit_at_next
from tinylm.training.checkpoint import LastCheckpoint
from tinylm.training.module import LitTransformerLM


class GracefulStop(Callback):
    """On a signal to any process, all processes finish the optimizer step, save, and print how to resume.

    A validation is left at its next batch instead, and repeated on resume. Before the first step and after the last
    one, a signal raises at once (signals.py). `LitTransformerLM` shares the request with the loss of the step, and
    `LastCheckpoint` saves.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Keeps the signal handlers from before Lightning installs its own."""
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Removes Lightning's handlers, which wait for all processes."""
        self._restore()

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Installs the handlers that let a step finish."""

        def receive(number: int, frame: Any) -> None:
            by_user, by_system = pl_module.stop_wanted
            pl_module.stop_wanted = (by_user or number == signal.SIGINT, by_system or number != signal.SIGINT)
            quit_at_next()
            if trainer.is_global_zero:
                what = "leaving the validation" if trainer.validating else "finishing this step, then saving"
                os.write(2, f"\ntinylm: {what} (once more to quit at once)\n".encode())

        for number in SIGNALS:
            signal.signal(number, receive)
        content = getattr(getattr(trainer, "datamodule", None), "content", None)
        if isinstance(content, StreamContent):
            content.stream.while_waiting = lambda: self._leave_waiting(trainer, pl_module)

    def _leave_waiting(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Ends a run that waits for a shard and was asked to stop. One process saves; several cannot agree to."""
        if not any(pl_module.stop_wanted):
            return
        pl_module.stop_agreed, saved = pl_module.stop_wanted, ""
        if trainer.world_size == 1:
            saved = ", which is saved"
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.save_now(trainer)
        raise self._stopped(pl_module, f"stopped after step {trainer.global_step:,}{saved}, waiting for a shard")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run before the first step after one that all processes agreed to stop at.

        Raises:
            Interrupted: if a user's signal was among the signals.
            Preempted: otherwise.
        """
        if any(pl_module.stop_agreed):
            raise self._stopped(pl_module, f"stopped after step {trainer.global_step:,}, which is saved")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leaves a validation if any process was asked to stop. The step before it is saved."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        pl_module.agree_to_stop()
        if any(pl_module.stop_agreed):
            step = f"step {trainer.global_step:,}"
            raise self._stopped(pl_module, f"stopped in the validation after {step}, which is saved")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Ends a run that was asked to stop after its last step, before anything is exported."""
        self._restore()
        if any(pl_module.stop_wanted):
            pl_module.stop_agreed = pl_module.stop_wanted
            raise self._stopped(pl_module, f"stopped after step {trainer.global_step:,}, the last, which is saved")

    def _stopped(self, pl_module: LitTransformerLM, what: str) -> Interrupted | Preempted:
        kind = Interrupted if pl_module.stop_agreed[0] else Preempted
        return kind(f"{what}; to resume: {self.command}")

    def teardown(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Restores the signal handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
