"""Which tokens make up step s: a pure function of (seed, s).

The training tokens are cut into windows of one context each. An epoch is a seeded permutation of the windows, cut at a
seeded offset that differs from epoch to epoch, so that no token always stands at the same place. The samples of all
epochs form one endless sequence; step s takes the `batch_size` samples from s * batch_size on. Nothing is stored
between steps, so a resumed run, on any number of processes, sees the same tokens in the same order.

Where documents are short and whole, windows begin with one, so that nothing has to be guessed that was told before the
window.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinylm.errors import DataError

IGNORE = -100  # a target that does not count, as in torch.nn.functional.cross_entropy


class Batch(NamedTuple):
    """What one device computes at once.

    Attributes:
        inputs: token ids, int64 (B, T)
        targets: the ids that follow, int64 (B, T), IGNORE where nothing is to be predicted
        num_targets: how many targets count in the whole optimizer step, over all devices and micro-batches
        log_prob: in evaluation, where it is known: that of all targets under the text's own source, in nats
        documents: the number of the document that each token is in, int64 (B, T), for networks with `document_mask`;
            None where the separators among the inputs tell
    """

    inputs: Tensor
    targets: Tensor
    num_targets: int
    log_prob: float | None = None
    documents: Tensor | None = None


@dataclass(frozen=True)
class TrainingWindows:
    """The order in which a run reads its training tokens.

    Args:
        num_tokens: how many there are
        context: tokens in a window, T
        batch_size: windows in an optimizer step, over all devices
        seed: of the order

    Raises:
        DataError: if there is not one whole window.
    """

    num_tokens: int
    context: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens <= self.context:
            raise DataError(f"train has {self.num_tokens} tokens, needs at least {self.context + 1}")

    @property
    def num_windows(self) -> int:
        """Windows in an epoch: as many as fit whatever the offset, and at least one."""
        return max(1, (self.num_tokens - self.context) // self.context)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which an epoch's windows are read once, rounded down."""
        return max(1, self.num_windows // self.batch_size)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step begin in the training tokens, int64 (batch_size,)."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(samples, self.num_windows)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._epoch_starts(int(epoch), places[here])
        return starts

    def _epoch_starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Where the windows at some places of an epoch begin."""
        slack = self.num_tokens - 1 - self.num_windows * self.context
        order, offset = shuffle(self.seed, epoch, self.num_windows, min(slack, self.context - 1) + 1)
        return offset + order[places] * self.context


@dataclass(frozen=True)
class DocumentWindows(TrainingWindows):
    """The order in which a run reads documents: each begins a window, one that is longer than the context several.

    A window that is longer than what is left of its document goes on into the next one.

    Args:
        begins: of the windows, int64 (windows,), as `document_rows` gives them; -1 is the last token, a separator
    """

    begins: np.ndarray = field(kw_only=True, compare=False)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self.begins)

    def _epoch_starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        order, _ = shuffle(self.seed, epoch, self.num_windows)
        return np.minimum(self.begins[order[places]], self.num_tokens - 1 - self.context)  # the last ones begin earlier


@lru_cache(maxsize=4)
def shuffle(seed: int, epoch: int, num_windows: int, num_offsets: int = 1) -> tuple[np.ndarray, int]:
    """The permutation of an epoch's windows and the offset of the first."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    offset = int(generator.integers(num_offsets))
    return generator.permutation(num_windows), offset


def gather(tokens: np.ndarray, starts: np.ndarray, context: int, num_targets: int) -> Batch:
    """The batch of windows that begin at `starts`, each of `context` tokens."""
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))  # (B, T + 1)
    return Batch(windows[:, :-1], windows[:, 1:], num_targets)


# --- evaluation: rows that together have every token as a target once


class Rows(NamedTuple):
    """The rows of an evaluation.

    Attributes:
        begins: the first input of each, int64 (rows,); -1 is the last token of all, which is a separator like any other
        ends: the last target of each, int64 (rows,)
        log_probs: of the targets of each under the text's own source, in nats, (rows,); None if it is not known
    """

    begins: np.ndarray
    ends: np.ndarray
    log_probs: np.ndarray | None = None


def window_rows(num_tokens: int, context: int) -> Rows:
    """Windows side by side: every token but the first is a target once."""
    begins = np.arange(0, max(num_tokens - 1, 0), context)
    return Rows(begins, np.minimum(begins + context, num_tokens - 1))


def document_rows(begins: np.ndarray, num_tokens: int, context: int, log_probs: np.ndarray | None = None) -> Rows:
    """Each document from its start, its separator included; one that is longer than the context in several rows.

    Args:
        begins: where the separators before the documents are, -1 for the first document's
        num_tokens: of all documents, each of which ends with a separator
        context: the most targets in a row
        log_probs: of the documents, which those of several rows count in the first
    """
    lengths = document_lengths(begins, num_tokens)
    pieces = -(-lengths // context)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the row in its document
    starts = np.repeat(begins, pieces) + number * context
    stops = np.minimum(starts + context, np.repeat(begins + lengths, pieces))
    return Rows(starts, stops, None if log_probs is None else np.where(number == 0, np.repeat(log_probs, pieces), 0.0))


def document_begins(tokens: np.ndarray, separator: int) -> np.ndarray:
    """Where the separators before the documents are, int64 (documents,): -1 for the first, each one's end otherwise."""
    return np.append(-1, np.flatnonzero(tokens == separator)[:-1])


def document_lengths(begins: np.ndarray, num_tokens: int) -> np.ndarray:
    """Tokens of each document, its separator included, int64 (documents,)."""
    return np.diff(np.append(begins, num_tokens - 1))


def gather_rows(tokens: np.ndarray, rows: Rows, part: slice) -> Batch:
    """The batch of some rows, all as long as the longest of all rows: what is missing is IGNOREd."""
    begins, ends = rows.begins[part, None], rows.ends[part, None]
    width = int((rows.ends - rows.begins).max())
    places = begins + np.arange(width + 1)
    windows = tokens[np.minimum(places, ends)].astype(np.int64)
    targets = torch.from_numpy(np.where(places <= ends, windows, IGNORE)[:, 1:])
    log_prob = None if rows.log_probs is None else float(rows.log_probs[part].sum())
    return Batch(torch.from_numpy(windows[:, :-1]), targets, int((ends - begins).sum()), log_prob)


def without_targets(batch: Batch) -> Batch:
    """A batch with nothing to predict."""
    log_prob = None if batch.log_prob is None else 0.0
    return batch._replace(targets=torch.full_like(batch.targets, IGNORE), num_targets=0, log_prob=log_prob)
