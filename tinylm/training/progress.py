"""Training for people: a progress bar, a line at each validation, and samples of the text that the model writes."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from tinylm.data.template import question_frame
from tinylm.errors import DataError, notice
from tinylm.generation import Generator
from tinylm.training.callbacks import MetricsLog, loss_and_floor
from tinylm.training.checkpoint import finished_step
from tinylm.training.module import LitTransformerLM
from tinylm.training.tracking import trackers


class Progress(ProgressBar):
    """Training for people: a bar over optimizer steps on a terminal, lines elsewhere, a line at each validation.

    Validations print their figures; samples are printed under them.
    """

    def __init__(self, metrics: MetricsLog) -> None:
        super().__init__()
        self.metrics = metrics
        self._bar: tqdm | None = None
        self._started = 0.0
        self._first_step = 0
        self._enabled = True

    def enable(self) -> None:
        """Switches the display on."""
        self._enabled = True

    def disable(self) -> None:
        """Switches the display off: ranks other than 0."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Begins the bar at the step where the run stands."""
        self._started, self._first_step = time.perf_counter(), trainer.global_step
        self._total = int(trainer.estimated_stepping_batches)
        terminal = sys.stderr.isatty() and self._enabled
        layout = "{desc}{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        if terminal:
            self._bar = tqdm(
                total=self._total, initial=trainer.global_step, bar_format=layout, dynamic_ncols=True, leave=False
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; a tenth of the way further, where there is no terminal, a line."""
        step = trainer.global_step
        if not finished_step(trainer, batch_idx) or not self._enabled:
            return
        if self._bar is not None:
            if step % 5 == 0 or step == self._total:
                self._bar.set_postfix_str(self._figures(), refresh=False)
                self._bar.update(step - self._bar.n)
        elif self.metrics.latest and step % max(1, self._total // 10) == 0:
            elapsed = time.perf_counter() - self._started
            left = elapsed / max(step - self._first_step, 1) * (self._total - step)
            self.print(f"step {step:,}/{self._total:,} | {self._figures()} | {left:.0f} s left")

    def _figures(self) -> str:
        latest = self.metrics.latest
        if not latest:
            return ""
        text = f"loss {latest['train/loss']:.3f}, {latest['perf/tokens_per_sec']:,.0f} tokens/s"
        return text + (f", MFU {latest['perf/mfu']:.0%}" if "perf/mfu" in latest else "")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Prints what the validation found."""
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

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class SampleText(Callback):
    """After each validation, shows how the model continues each prompt, on the screen and in `samples.txt`."""

    def __init__(self, folder: Path, prompts: tuple[str, ...], num_tokens: int, temperature: float = 0.8) -> None:
        self.folder, self.prompts, self.num_tokens, self.temperature = folder, prompts, num_tokens, temperature

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Generates with a fixed seed, so that samples of different steps differ by the model alone."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero or not self.num_tokens:
            return
        if isinstance(pl_module.net, FSDPModule):  # no process has all weights
            return
        generator = Generator(pl_module.net, pl_module.tokenizer)
        if pl_module.template is not None:
            generator.before, generator.after = question_frame(pl_module.tokenizer, pl_module.template)
            generator.conversation = True
        samples = []
        for seed, prompt in enumerate(self.prompts, start=1):  # the same prompt twice gives two texts
            try:
                options = {"temperature": self.temperature, "seed": seed, "truncate": "left"}
                length = self._length(generator, prompt)
                text = prompt + generator.generate(prompt, max_new_tokens=length, **options)
            except DataError as error:  # a prompt with characters that this text does not have
                notice(f"no sample for {prompt!r}: {error}")
                self.prompts = tuple(other for other in self.prompts if other != prompt)
                continue
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.print(_indent(text))
            with (self.folder / "samples.txt").open("a", encoding="utf-8", newline="") as file:
                file.write(f"=== step {trainer.global_step}\n{text}\n\n")
            samples.append((prompt, text))
        for tracker in trackers(trainer):
            tracker.log_samples(trainer.global_step, samples)

    def _length(self, generator: Generator, prompt: str) -> int:
        """As many tokens as are asked for and fit into the context, behind the end-of-text token and the prompt."""
        read = [*generator.before, *generator.tokenizer.encode(prompt), *generator.after]
        room = generator.model.config.max_seq_len - 1 - len(read)
        return min(self.num_tokens, max(1, room))


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
