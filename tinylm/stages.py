"""Stages of a run: a batch size or a context that is smaller in the first steps.

Early in training, small batches are as good as large ones (McCandlish et al. 2018), and short sequences need less
attention computation (Li et al. 2022). The config gives each stage by the step before which it ends:
`{200: 8, 400: 16}` is 8 before step 200, 16 before step 400, and the final value from then on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinylm.errors import ConfigError


@dataclass(frozen=True)
class Stages:
    """A number that depends on the step.

    Args:
        final: the value after the last stage
        before: (step before which a stage ends, its value), in ascending order
    """

    final: int
    before: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, option: str, given: Mapping[int, int] | None, final: int) -> "Stages":
        """The stages of an option, which begin at step 0.

        Raises:
            ConfigError: for steps or values that are not positive integers, or values above the final one.
        """
        stages = [(_positive(option, end), _positive(option, value)) for end, value in (given or {}).items()]
        if given is not None and not stages:
            raise ConfigError(f"{option}: has no stages; give some, as {{200: 8}}, or leave it out")
        for end, value in stages:
            if value >= final:
                raise ConfigError(f"{option}: the final value is {final}, so {value} before step {end} must be smaller")
        return cls(final, tuple(sorted(stages)))

    def at(self, step: int) -> int:
        """The value of a step, counted from 0."""
        return next((value for end, value in self.before if step < end), self.final)

    def total(self, steps: int | np.ndarray) -> np.ndarray:
        """The sum of the values of the first `steps` steps.

        >>> Stages(16, ((2, 4), (5, 8))).total(7)  # 2 x 4 + 3 x 8 + 2 x 16
        array(64)
        """
        ends = [0, *(end for end, _ in self.before)]
        values = [*(value for _, value in self.before), self.final]
        counts = np.diff(np.minimum.outer(np.asarray(steps), [*ends, np.iinfo(np.int64).max]))
        return counts @ np.array(values)

    def range(self, step: int) -> np.ndarray:
        """The numbers of the samples of a step in the endless sequence, if this is a batch size, int64 (value,)."""
        first = int(self.total(step))
        return np.arange(first, first + self.at(step))

    @property
    def values(self) -> list[int]:
        """All values, the final one last."""
        return [*(value for _, value in self.before), self.final]

    def __str__(self) -> str:
        return ", then ".join(f"{value:,}" for value in self.values)


def as_stages(value: "int | Stages") -> Stages:
    """A constant value as a single stage."""
    return value if isinstance(value, Stages) else Stages(value)


def _positive(option: str, given: Any) -> int:
    if isinstance(given, str) and given.isdecimal():  # a key of JSON
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ConfigError(f"{option}: must give steps and sizes of at least 1, as {{200: 8}}, got {given!r}")
    return given
