"""The order by shard: a run can begin once its first shard exists, and uses each shard in one stretch.

The first epoch takes the shards by number, every later one in a seeded permutation. The windows of a shard are those
of `TrainingWindows` over its tokens alone, permuted anew in each epoch: every token of a shard but its first is a
target in every epoch. The windows of all shards of all epochs form one endless sequence, of which each step takes the
next ones, as in `TrainingWindows`. The order depends on the seed and on the lengths of the shards up to the current
one, not on the shards that existed at the time.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

import numpy as np

from tinylm.data.batches import TrainingWindows
from tinylm.errors import DataError
from tinylm.stages import Stages, as_stages


class ShardOrder:
    """The windows of each training step.

    Args:
        length: number of a shard -> its tokens; None if there are no more shards. It may wait for the shard
        context: tokens in a window
        batch_size: windows in an optimizer step, over all devices; `Stages` if it grows
        seed: seed of the order
    """

    version: ClassVar[int] = 100

    def __init__(self, length: Callable[[int], int | None], context: int, batch_size: int | Stages, seed: int) -> None:
        self._length, self.context, self.seed = length, context, seed
        self._sizes = as_stages(batch_size)
        self._windows: list[TrainingWindows | None] = []  # of each known shard; None if it is shorter than a window
        self._ends = np.empty(0, np.int64)  # samples of the first epoch up to and including each known shard
        self._ended = False

    def known(self, samples: int) -> int:
        """Samples of the first epoch in the shards known so far; waits until there are `samples`, or no more shards."""
        while not self._ended and (not len(self._ends) or self._ends[-1] < samples):
            tokens = self._length(len(self._windows))
            if tokens is None:
                self._ended = True
            else:
                fits = tokens > self.context
                self._windows.append(TrainingWindows(tokens, self.context, 1, self._seed()) if fits else None)
                self._ends = np.append(self._ends, (self._ends[-1:].sum()) + self._count(-1))
        return int(self._ends[-1:].sum())

    def windows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each window of a step, and its position in the shard, int64 (batch_size,) each.

        Raises:
            DataError: if no shard has a window.
        """
        first, shards, starts = int(self._sizes.total(step)), [], []
        last = first + self._sizes.at(step)
        while first < last:
            epoch, number, position, left = self._locate(first)
            samples = np.arange(position, position + min(left, last - first))
            windows = self._windows[number]
            assert windows is not None
            starts.append(windows.sample_starts(epoch * windows.num_windows + samples))
            shards.append(np.full(len(samples), number))
            first += len(samples)
        return np.concatenate(shards), np.concatenate(starts)

    def _locate(self, sample: int) -> tuple[int, int, int, int]:
        """The epoch and the shard of a sample, its position among the shard's samples, and how many follow from it."""
        size = self.known(sample + 1)
        if sample < size:
            epoch, order, ends = 0, None, self._ends
        elif not size:
            raise DataError(f"data.corpus: no shard has more than the {self.context:,} tokens of max_seq_len; lower it")
        else:
            epoch, sample = divmod(sample, size)
            order, ends = self._shuffled(epoch)
        place = int(np.searchsorted(ends, sample, side="right"))
        number = place if order is None else int(order[place])
        left = int(ends[place]) - sample
        return epoch, number, self._count(number) - left, left

    def _count(self, number: int) -> int:
        windows = self._windows[number]
        return 0 if windows is None else windows.num_windows

    def _seed(self) -> int:
        """The seed of the next shard: shards of equal length are permuted differently."""
        return self.seed * (1 << 32) + len(self._windows) + 1

    @lru_cache(maxsize=2)  # noqa: B019 (an order lives as long as its run)
    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of a later epoch in their order, and its samples up to and including each."""
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = generator.permutation(len(self._windows))
        return order, np.cumsum([self._count(number) for number in order])
