"""StepProfile: the time of training steps by operation, with PyTorch's profiler."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from tinylm.errors import notice
from tinylm.training.checkpoint import finished_step


class StepProfile(Callback):
    """Profiles some optimizer steps and writes `profile.txt` and `profile.trace.json`."""

    def __init__(self, first_step: int = 10, num_steps: int = 5, folder: str = ".", rows: int = 25) -> None:
        """Creates the callback.

        Args:
            first_step: Steps to skip for warmup
            num_steps: Steps to profile
            folder: Folder of the files; {run} is the run folder
            rows: Rows of the table
        """
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences its library
        self.first_step, self.num_steps, self.folder, self.rows = first_step, num_steps, Path(folder), rows
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the profiler before the first step."""
        if trainer.is_global_zero and trainer.global_step == self.first_step and self._profile is None:
            self._profile = profile(activities=[ProfilerActivity.CPU, *self._cuda()], acc_events=True)
            self._profile.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops the profiler after the last step and writes the files."""
        last = trainer.global_step == self.first_step + self.num_steps and finished_step(trainer, batch_idx)
        if self._profile is None or not last:
            return
        self._profile.__exit__(None, None, None)
        by = "self_cuda_time_total" if self._cuda() else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=by, row_limit=self.rows)
        (self.folder / "profile.txt").write_text(table, encoding="utf-8")
        self._profile.export_chrome_trace(str(self.folder / "profile.trace.json"))
        notice(
            f"profile of {self.num_steps} steps: {self.folder / 'profile.txt'}, and profile.trace.json "
            "for https://ui.perfetto.dev"
        )

    @staticmethod
    def _cuda() -> list[ProfilerActivity]:
        return [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
