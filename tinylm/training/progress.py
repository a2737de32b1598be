"""Progress: a progress bar on a terminal, lines elsewhere, and a line for each validation."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from tinylm.data.division import data_ranks
from tinylm.data.run_data import data_of
from tinylm.training.checkpoint import finished_step
from tinylm.training.finish import loss_and_floor
from tinylm.training.module import LitTransformerLM
from tinylm.training.throughput import MetricsLog

REFRESH = 0.1  # seconds between two changes of the bar, whose loss waits for the device
SILENCE = 30.0  # seconds between two lines without a terminal, at least


class Progress(ProgressBar):
    """Shows progress in optimizer steps, and the metrics of each validation."""

    def __init__(self, metrics: MetricsLog) -> None:
        super().__init__()
        self.metrics = metrics
        self._bar: tqdm | None = None
        self._validation: tqdm | None = None
        self._started = 0.0
        self._first_step = self._said = 0
        self._enabled = True

    def enable(self) -> None:
        """Switches the display on."""
        self._enabled = True

    def disable(self) -> None:
        """Switches the display off, as on ranks other than 0."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Starts the bar at the current step."""
        self._started = self._told = time.perf_counter()
        self._first_step = self._said = trainer.global_step
        total = data_of(trainer).total_steps
        terminal = sys.stderr.isatty() and self._enabled
        layout = "{desc}{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        if terminal:
            self._bar = tqdm(
                total=total, initial=trainer.global_step, bar_format=layout, dynamic_ncols=True, leave=False
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; without a terminal, prints a line after every tenth of the run, and after a long silence."""
        step = trainer.global_step
        if not finished_step(trainer, batch_idx) or not self._enabled:
            return
        now, total = time.perf_counter(), data_of(trainer).total_steps
        elapsed = now - self._started
        if self._bar is not None:
            if now - self._told > REFRESH or step == total:
                self._told, self._bar.total = now, total
                self._bar.set_postfix_str(self._figures(trainer, pl_module), refresh=False)
                self._bar.update(step - self._bar.n)
        elif self._is_tenth(step, total) or now - self._told > max(SILENCE, elapsed / 2):
            self._told, self._said = now, step
            left = elapsed / max(step - self._first_step, 1) * (total - step)
            self.print(f"step {step:,}/{total:,} | {self._figures(trainer, pl_module)} | {left:.0f} s left")

    def _is_tenth(self, step: int, total: int) -> bool:
        """Whether another tenth of the run is done; a tenth is not said twice where the number of steps varies."""
        return step % max(1, total // 10) == 0 and step - self._said >= total // 20

    def _figures(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> str:
        found = self.metrics.figures(trainer, pl_module)
        text = f"loss {found['train/loss']:.3f}, {found['perf/tokens_per_sec']:,.0f} tokens/s"
        return text + (f", MFU {found['perf/mfu']:.0%}" if "perf/mfu" in found else "")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Starts the clock of the validation, and its bar on a terminal."""
        self._seen, self._begun, self._told = 0, time.perf_counter(), time.perf_counter()
        if self._bar is not None and not trainer.sanity_checking:
            layout = "validation {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} tokens [{elapsed}<{remaining}]"
            total = data_of(trainer).tokens_of_validation
            self._validation = tqdm(total=total, bar_format=layout, unit_scale=True, leave=False, delay=1)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Moves the bar; without a terminal, a long validation prints a line every half a minute."""
        tokens = min(batch.num_targets * data_ranks(trainer)[0], data_of(trainer).tokens_of_validation - self._seen)
        self._seen += tokens
        if self._validation is not None:
            self._validation.update(tokens)
        now = time.perf_counter()
        if self._bar is None and now - self._told > SILENCE and self._enabled and not trainer.sanity_checking:
            self._told, total = now, data_of(trainer).tokens_of_validation
            left = (now - self._begun) / max(self._seen, 1) * (total - self._seen)
            self.print(f"validation: {self._seen:,} of {total:,} tokens, {left:.0f} s left")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Prints the metrics of the validation."""
        self._close_validation()
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.print(
                f"step {trainer.global_step:,} | {loss_and_floor(found)}, perplexity {found['val/perplexity']:.2f}, "
                f"{found['val/bpb']:.3f} bits per byte, accuracy {found['val/accuracy']:.1%}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: LitTransformerLM, exception: BaseException) -> None:
        """Closes the bar."""
        self._close()

    def _close_validation(self) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None

    def _close(self) -> None:
        self._close_validation()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
