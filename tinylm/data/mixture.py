"""The order of a mixture: the source of each sample, and the sample's number within the source.

Each source is its own endless sequence of windows, with its own seed and epochs. They are interleaved evenly, not at
random: after any number of samples each source has contributed its share up to rounding, so every batch contains the
sources in proportion. The counts have a closed form, so the order needs no state and is known at any step.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tinylm.data.batches import TrainingWindows
from tinylm.stages import Stages, as_stages

UNIT = 1 << 31  # shares are multiples of 1 / UNIT, so that all products fit int64


def source_seed(seed: int, name: str) -> int:
    """The seed of a source's order: two sources of equal size are shuffled differently."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def samples_before(samples: np.ndarray, weights: Sequence[Fraction]) -> np.ndarray:
    """Counts the samples of each source that precede samples of the mixture, int64 (n,) -> (n, sources).

    The sources are divided into two halves, each half gets its rounded share of the samples, and so on recursively.
    Each count is within ceil(log2(sources)) / 2 of its exact share and never decreases, and their sum is exact.

    Args:
        samples: numbers of samples in the mixture's endless sequence, from 0
        weights: relative weights of the sources, positive
    """
    if len(weights) == 1:
        return samples[:, None]
    middle = len(weights) // 2
    share = round(sum(weights[:middle]) / sum(weights) * UNIT)
    share = min(max(share, 1), UNIT - 1)  # a source is never left out
    whole, rest = np.divmod(samples, UNIT)
    first = whole * share + (rest * share + UNIT // 2) // UNIT
    halves = (samples_before(first, weights[:middle]), samples_before(samples - first, weights[middle:]))
    return np.concatenate(halves, axis=1)


@dataclass(frozen=True)
class MixtureOrder:
    """The windows of each training step, from several sources.

    Args:
        orders: name of each source -> its windows, of one context
        weights: name of each source -> its share of the training tokens, relative to the others
        batch_size: windows in an optimizer step, over all devices; `Stages` if it grows
    """

    orders: Mapping[str, TrainingWindows]
    weights: Mapping[str, float]
    batch_size: int | Stages

    @property
    def version(self) -> int:
        """Version of the order, which is the version of the sources' orders."""
        return max(order.version for order in self.orders.values())

    @property
    def names(self) -> list[str]:
        """The sources, sorted, so that their order in the config does not matter."""
        return sorted(self.orders)

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return next(iter(self.orders.values())).context

    @property
    def num_windows(self) -> int:
        """Windows in an epoch of the trainer: as many as all sources have."""
        return sum(order.num_windows for order in self.orders.values())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch of the trainer, rounded down, and at least one."""
        return max(1, self.num_windows // as_stages(self.batch_size).final)

    def _before(self, samples: np.ndarray) -> np.ndarray:
        return samples_before(samples, [Fraction(self.weights[name]) for name in self.names])

    def samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample of a step, by its index in `names`, and its number there, int64 (B,) each."""
        samples = as_stages(self.batch_size).range(step)
        before = self._before(np.append(samples, samples[-1] + 1))
        sources = np.diff(before, axis=0).argmax(axis=1)
        return sources, np.take_along_axis(before[:-1], sources[:, None], axis=1)[:, 0]

    def starts(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each window of a step, by its index in `names`, and its position there, int64 (B,) each."""
        sources, numbers = self.samples(step)
        starts = np.empty_like(numbers)
        for source in np.unique(sources):
            there = sources == source
            starts[there] = self.orders[self.names[source]].sample_starts(numbers[there])
        return sources, starts

    def epochs(self, steps: int) -> dict[str, float]:
        """Epochs of each source in a run of `steps` steps."""
        counts = self._before(as_stages(self.batch_size).total(steps)[None])[0].tolist()
        return {name: count / self.orders[name].num_windows for name, count in zip(self.names, counts, strict=True)}
