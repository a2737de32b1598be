"""Subword regularization: the tokens of a training text are drawn anew each time it is read.

    "the whale"    epoch 1: the| whale    epoch 2: the| wh|ale    epoch 3: t|he| wha|le

A model that sees several segmentations of a word learns how its spellings belong together (Kudo 2018, for the unigram
model; Provilkov et al. 2020, BPE dropout). Validation, samples and scores use the one segmentation of `encode`.

The token ids of a text are stored once, as always. Each row of a batch is segmented again when it is read, so this
works for every source of text, and the draws are a pure function of (seed, step, row): they are the same after a
resume and on any number of processes. If the drawn tokens of a row exceed the context, the last ones are cut off.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from tinylm.data.batches import Batch, windows_batch
from tinylm.errors import ConfigError
from tinylm.tokenizer import Tokenizer


def check_alpha(tokenizer: Tokenizer, alpha: float) -> None:
    """Raises ConfigError if the tokenizer draws no samples, or alpha is out of range."""
    try:
        tokenizer.sample("a", alpha, np.random.default_rng(0))
    except ConfigError as error:
        raise ConfigError(f"data.subword_alpha: {error}") from error


def resampled(tokenizer: Tokenizer, ids: np.ndarray, alpha: float, random: np.random.Generator) -> np.ndarray:
    """Segments the text of ids anew, at random as in `Tokenizer.sample`, int64 (n,) -> (m,).

    Special and other added tokens stay unchanged. Ids with only some bytes of a character, up to three at each end of
    the text between such tokens, stay as well.

    Raises:
        ConfigError: as in `Tokenizer.sample`.
    """
    parts, done = [np.empty(0, dtype=np.int64)], 0
    for place in [*np.flatnonzero(tokenizer.fixed_ids[ids]).tolist(), len(ids)]:
        run = ids[done:place]
        begin, end = _whole_characters([tokenizer.token_bytes[token] for token in run])
        drawn = tokenizer.resample(run[begin:end], alpha, random)
        parts += [run[:begin], drawn, run[end:], ids[place : place + 1]]
        done = place + 1
    return np.concatenate(parts)


def _whole_characters(pieces: list[bytes]) -> tuple[int, int]:
    """The longest range of tokens that covers only whole characters: (begin, end)."""
    for begin in range(min(len(pieces), 3) + 1):
        for end in range(len(pieces), max(begin, len(pieces) - 3) - 1, -1):
            with contextlib.suppress(UnicodeDecodeError):
                b"".join(pieces[begin:end]).decode()
                return begin, end
    return 0, 0


@dataclass(frozen=True)
class SampledRows(Dataset[Batch]):
    """Training batches whose rows are segmented at random.

    Args:
        batches: item i is micro-batch i % accumulate of step i // accumulate
        tokenizer: made their token ids
        alpha: as in `Tokenizer.sample`
        seed: of the draws
        accumulate: micro-batches in a step
        rank: this process, of those that read different rows
    """

    batches: Dataset[Batch]
    tokenizer: Tokenizer
    alpha: float
    seed: int
    accumulate: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        batch = self.batches[index]
        step, micro_step = divmod(index, self.accumulate)
        # number of this batch's first row within the step
        first = (self.rank * self.accumulate + micro_step) * len(batch.inputs)
        rows = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).numpy()
        for number, row in enumerate(rows):
            random = np.random.Generator(np.random.PCG64([self.seed, step, first + number]))
            ids = resampled(self.tokenizer, row, self.alpha, random)
            if len(ids) >= len(row):  # a draw may be shorter than the segmentation of `encode`
                rows[number] = ids[: len(row)]
        return windows_batch(rows, batch.num_targets)
