"""Which tokens make up step s: a pure function of (seed, s).

The training tokens are cut into windows of one context each. An epoch is a seeded permutation of the windows, cut at a
seeded offset that differs from epoch to epoch, so that no token always stands at the same place. The samples of all
epochs form one endless sequence; step s takes the `batch_size` samples from s * batch_size on. Nothing is stored
between steps, so a resumed run, on any number of processes, sees the same tokens in the same order.
"""

from dataclasses import dataclass
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
    """

    inputs: Tensor
    targets: Tensor
    num_targets: int


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
            order, offset = _epoch(self, int(epoch))
            here = epochs == epoch
            starts[here] = offset + order[places[here]] * self.context
        return starts


@lru_cache(maxsize=4)
def _epoch(windows: TrainingWindows, epoch: int) -> tuple[np.ndarray, int]:
    """The permutation of an epoch's windows and the offset of the first."""
    generator = np.random.Generator(np.random.PCG64([windows.seed, epoch]))
    slack = windows.num_tokens - 1 - windows.num_windows * windows.context
    offset = int(generator.integers(min(slack, windows.context - 1) + 1))
    return generator.permutation(windows.num_windows), offset


def gather(tokens: np.ndarray, starts: np.ndarray, context: int, num_targets: int) -> Batch:
    """The batch of windows that begin at `starts`, each of `context` tokens."""
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))  # (B, T + 1)
    return Batch(windows[:, :-1], windows[:, 1:], num_targets)


def evaluation_starts(num_tokens: int, context: int) -> np.ndarray:
    """Where the windows of an evaluation begin: side by side, so that every token but the first is a target once."""
    return np.arange(0, max(num_tokens - 1, 0), context)


def gather_evaluation(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """As `gather`, where the last window may be cut short: what is missing is IGNOREd."""
    places = starts[:, None] + np.arange(context + 1)
    present = places < len(tokens)
    windows = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    targets = torch.from_numpy(np.where(present, windows, IGNORE)[:, 1:])
    return Batch(torch.from_numpy(windows[:, :-1]), targets, int(present[:, 1:].sum()))
