"""GracefulStop: ends a run at a whole step when a signal arrives."""

import os
import signal
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinylm.errors import Interrupted, Preempted
from tinylm.training.module import LitTransformerLM


class GracefulStop(Callback):
    """On a signal to any process, all processes finish the optimizer step, save, and print how to resume.

    SIGINT comes from the user and ends with exit code 130; SIGTERM and SIGUSR1 (SLURM's, before the time limit) come
    from the system and end with 75. A second signal quits at once. `LitTransformerLM` shares the request with the loss
    of the step, and `LastCheckpoint` saves.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))

    def __init__(self, command: str) -> None:
        self.command = command
        self._earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Installs signal handlers; Lightning's own are restored when training ends."""

        def receive(number: int, frame: Any) -> None:
            by_user, by_system = pl_module.stop_wanted
            pl_module.stop_wanted = (by_user or number == signal.SIGINT, by_system or number != signal.SIGINT)
            for each in self.SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            if trainer.is_global_zero:
                os.write(2, b"\ntinylm: finishing this step, then saving (once more to quit at once)\n")

        self._earlier = {number: signal.signal(number, receive) for number in self.SIGNALS}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run before the first step after one that all processes agreed to stop at.

        Raises:
            Interrupted: if a user's signal was among the signals.
            Preempted: otherwise.
        """
        if any(pl_module.stop_agreed):
            kind = Interrupted if pl_module.stop_agreed[0] else Preempted
            raise kind(f"stopped after step {trainer.global_step:,}, which is saved; to resume: {self.command}")

    def teardown(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Restores the signal handlers."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
