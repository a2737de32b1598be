"""SampleText: generated text after each validation, or at the end of a run without one."""

import re
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule

from tinylm.data.template import use_template
from tinylm.errors import DataError, notice
from tinylm.files import append_text, atomic_write, sync_file
from tinylm.generation import Generator
from tinylm.training.module import LitTransformerLM
from tinylm.training.trackers import trackers


class SampleText(Callback):
    """Continues each prompt after every validation, on the screen and in `samples.txt`.

    Without a validation it does so at the end of the run.
    """

    def __init__(self, folder: Path, prompts: tuple[str, ...], num_tokens: int, temperature: float = 0.8) -> None:
        self.folder, self.prompts, self.num_tokens, self.temperature = folder, prompts, num_tokens, temperature

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Generates."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Generates samples if no validation did, except when a finished run is resumed."""
        if trainer.limit_val_batches == 0 and not has_samples(self.folder / "samples.txt", trainer.global_step):
            pl_module.eval()
            self._sample(trainer, pl_module)
            pl_module.train()

    def _sample(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Generates with fixed seeds, so that samples of different steps differ only through the model."""
        if not trainer.is_global_zero or not self.num_tokens:
            return
        if isinstance(pl_module.net, FSDPModule):  # no process has all the weights
            return
        generator = Generator(pl_module.net, pl_module.tokenizer)
        if pl_module.template is not None:
            use_template(generator, pl_module.template)
        samples = []
        for seed, prompt in enumerate(self.prompts, start=1):  # a repeated prompt gives different texts
            try:
                options = {"temperature": self.temperature, "seed": seed, "truncate": "left"}
                length = self._length(generator, prompt)
                text = prompt + generator.generate(prompt, max_new_tokens=length, **options)
            except DataError as error:  # a prompt with characters that are not in the corpus
                notice(f"no sample for {prompt!r}: {error}")
                self.prompts = tuple(other for other in self.prompts if other != prompt)
                continue
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.print(_indent(text))
            append_sample(self.folder / "samples.txt", trainer.global_step, text)
            samples.append((prompt, text))
        for tracker in trackers(trainer):
            tracker.log_samples(trainer.global_step, samples)

    def _length(self, generator: Generator, prompt: str) -> int:
        """Number of tokens to generate: `num_tokens`, or fewer if the context cannot hold them after the prompt."""
        room = generator.model.config.max_seq_len - len(generator.whole_prompt(prompt))
        return min(self.num_tokens, max(1, room))


def append_sample(path: Path, step: int, text: str) -> None:
    """Appends a sample to samples.txt."""
    append_text(path, f"=== step {step}\n{text}\n\n")
    sync_file(path)


def has_samples(path: Path, step: int) -> bool:
    """Whether samples.txt has samples of a step."""
    return path.is_file() and f"=== step {step}\n".encode() in path.read_bytes()


def truncate_samples(path: Path, step: int, validating: bool = False) -> None:
    """Drops the samples beyond a step and, if its validation is to be repeated, those of the step; atomically."""
    if not path.is_file():
        return
    data, last = path.read_bytes(), step - validating
    for header in re.finditer(rb"^=== step (\d+)$", data, re.MULTILINE):
        if int(header[1]) > last:
            with atomic_write(path) as file:
                file.write(data[: header.start()])
            return


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
