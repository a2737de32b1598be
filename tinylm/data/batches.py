"""The tokens of step s: a pure function of (seed, s).

The training tokens are cut into windows of one context each. An epoch is a seeded permutation of the windows, whose
grid is shifted by a seeded offset that differs from epoch to epoch, so tokens do not keep their positions. The grid
extends beyond both ends of the text; its first and last windows are moved inwards, where they overlap their neighbors,
so every token but the first is a target in every epoch. The samples of all epochs form one endless sequence, of which
step s takes samples s * batch_size to (s + 1) * batch_size; batches that grow with the steps (`Stages`) take theirs one
after the other as well. No state is kept between steps, so a resumed run sees the same tokens in the same order on any
number of processes.

Where documents are short, each begins a window, so no target depends on text cut off before the window.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tinylm.data.token_array import Tokens, read_windows
from tinylm.errors import DataError
from tinylm.stages import Stages, as_stages


class Batch(NamedTuple):
    """The micro-batch of one device.

    Attributes:
        inputs: token ids, int64 (B, T)
        targets: the next tokens, int64 (B, T), IGNORE where a target does not count
        num_targets: targets that count in the whole optimizer step, over all devices and micro-batches
        log_prob: in evaluation, the exact log probability of all targets, in nats; None if unknown
        documents: document number of each token, int64 (B, T), for models with `document_mask`; None if separators
            among the inputs determine it
        source: in the evaluation of a mixture, the name of the source
        rejected: for preferences, the rejected response to each prompt, in a batch of the same shape; the other fields
            hold the chosen responses
    """

    inputs: Tensor
    targets: Tensor
    num_targets: int
    log_prob: float | None = None
    documents: Tensor | None = None
    source: str | None = None
    rejected: "Batch | None" = None


# --- training


def too_short(num_tokens: int, context: int, remedy: str = "give a longer text") -> str:
    """The error message for a training text that does not fill one window."""
    lower = f", or set max_seq_len to at most {num_tokens - 1:,}" if num_tokens > 1 else ""
    needs = f"train has {num_tokens:,} tokens, max_seq_len {context:,} needs at least {context + 1:,}"
    return f"{needs}; {remedy}{lower}"


@dataclass(frozen=True)
class TrainingWindows:
    """The windows of each training step.

    Args:
        num_tokens: number of training tokens
        context: tokens in a window, T
        batch_size: windows in an optimizer step, over all devices; `Stages` if it grows
        seed: seed of the order

    Raises:
        DataError: if the tokens do not fill one window.
    """

    version: ClassVar[int] = 2  # of the order; version 1 never reached the last num_tokens % context tokens

    num_tokens: int
    context: int
    batch_size: int | Stages
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens <= self.context:
            raise DataError(too_short(self.num_tokens, self.context))

    @property
    def num_windows(self) -> int:
        """Windows in an epoch: they cover all targets, and leave at least half a window to shift the grid."""
        needed = -(-(self.num_tokens - 1 + self.context // 2) // self.context)
        return min(needed, self.num_tokens - self.context)  # number of different windows

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, rounded down, and at least one."""
        return max(1, self.num_windows // as_stages(self.batch_size).final)

    def starts(self, step: int) -> np.ndarray:
        """Positions of the windows of a step in the training tokens, int64 (batch_size,)."""
        return self.sample_starts(as_stages(self.batch_size).range(step))

    def sample_starts(self, samples: np.ndarray) -> np.ndarray:
        """Positions of samples of the endless sequence, by their numbers, int64 (n,) -> (n,)."""
        surplus = self.num_windows * self.context - (self.num_tokens - 1)
        least, most = max(0, surplus - self.context + 1), min(surplus, self.context - 1)  # before the first target
        windows, shifts = shuffled(samples, self.seed, self.num_windows, most - least + 1)
        return np.clip(windows * self.context - (least + shifts), 0, self.num_tokens - 1 - self.context)


@dataclass(frozen=True)
class DocumentWindows(TrainingWindows):
    """Windows that begin with a document; a document longer than the context begins several.

    A window that reaches beyond its document continues into the next one.

    Args:
        begins: positions of the windows, int64 (windows,), from `document_rows`; -1 is the last token, a separator
    """

    version: ClassVar[int] = 1

    begins: np.ndarray = field(kw_only=True, compare=False)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self.begins)

    def sample_starts(self, samples: np.ndarray) -> np.ndarray:
        """Positions of samples, int64 (n,) -> (n,). The last windows begin early enough to be full."""
        windows, _ = shuffled(samples, self.seed, self.num_windows)
        return np.minimum(self.begins[windows], self.num_tokens - 1 - self.context)


def shuffled(samples: np.ndarray, seed: int, epoch_size: int, num_offsets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The items of samples of the endless sequence, and the offset of each one's epoch, int64 (n,) each."""
    epochs, positions = np.divmod(samples, epoch_size)
    items, offsets = np.empty_like(samples), np.empty_like(samples)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        order, offsets[in_epoch] = shuffle(seed, int(epoch), epoch_size, num_offsets)
        items[in_epoch] = order[positions[in_epoch]]
    return items, offsets


@lru_cache(maxsize=32)  # two epochs of each source of a mixture
def shuffle(seed: int, epoch: int, epoch_size: int, num_offsets: int = 1) -> tuple[np.ndarray, int]:
    """The permutation of an epoch's items, and the epoch's offset."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    offset = int(generator.integers(num_offsets))
    return generator.permutation(epoch_size), offset


def gather(tokens: Tokens, starts: np.ndarray, context: int, num_targets: int) -> Batch:
    """The batch of the windows that begin at `starts`, each of `context` tokens."""
    return windows_batch(windows_at(tokens, starts, context), num_targets)


def windows_at(tokens: Tokens, starts: np.ndarray, context: int) -> np.ndarray:
    """The windows that begin at `starts`, each with the token after it, int64 (B, T + 1)."""
    return read_windows(tokens, starts, context + 1)


def windows_batch(windows: np.ndarray, num_targets: int) -> Batch:
    """The batch of windows (B, T + 1), of which each token predicts the next."""
    ids = torch.from_numpy(windows)
    return Batch(ids[:, :-1], ids[:, 1:], num_targets)


# --- the share of each process


class MicroSteps(Sampler[int]):
    """The indices of an epoch's micro-batches, counted from the run's first, from the current position on."""

    def __init__(self, per_epoch: int, position) -> None:
        self.per_epoch, self.position = per_epoch, position

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.position()  # read at the first batch: a loader may be built before a checkpoint is restored
        yield from range(start, (start // self.per_epoch + 1) * self.per_epoch)


@dataclass(frozen=True)
class TrainingBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate."""

    tokens: Tokens
    windows: TrainingWindows
    accumulate: int
    world_size: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self.accumulate)
        starts, context = self.windows.starts(step), self.windows.context
        shares = starts.reshape(self.world_size, self.accumulate, -1)
        return gather(self.tokens, shares[self.rank, micro_step], context, len(starts) * context)


@dataclass(frozen=True)
class ShortRows(Dataset[Batch]):
    """Training batches whose windows are cut into shorter rows at first; all tokens remain.

    Args:
        batches: item i is micro-batch i % accumulate of step i // accumulate
        lengths: tokens in a row, by steps; each divides the context
        accumulate: micro-batches in a step
    """

    batches: Dataset[Batch]
    lengths: Stages
    accumulate: int

    def __getitem__(self, index: int) -> Batch:
        batch, length = self.batches[index], self.lengths.at(index // self.accumulate)
        return batch._replace(inputs=batch.inputs.reshape(-1, length), targets=batch.targets.reshape(-1, length))
