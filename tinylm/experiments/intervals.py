"""Means with spread, and the confidence interval of a mean difference of pairs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with the sample standard deviation; None for a single seed."""

    value: float
    spread: float | None


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs.

    Attributes:
        pairs: the differences
        value: their mean
        half: half the width of its 95% confidence interval; None for a single pair
    """

    pairs: tuple[float, ...]
    value: float
    half: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval."""
        return None if self.half is None else (self.value - self.half, self.value + self.half)


def mean(values: Sequence[float]) -> Mean:
    """The mean of values and their spread."""
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(values: Sequence[float], others: Sequence[float], level: float = 0.95) -> Difference:
    """The mean of `values - others` with Student's t interval (Student 1908), for pairs of the same seed."""
    pairs = tuple(value - other for value, other in zip(values, others, strict=True))
    half = None
    if len(pairs) > 1:
        half = t_quantile(len(pairs) - 1, level) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(pairs, statistics.fmean(pairs), half)


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t that Student's distribution does not exceed in absolute value with a probability of `level`.

    >>> round(t_quantile(2), 3)
    4.303
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < level else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle)): a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees % 2 == 0:
        terms = [1.0]
        for k in range(1, degrees // 2):
            terms.append(terms[-1] * cosine**2 * (2 * k - 1) / (2 * k))
        return sine * math.fsum(terms)
    terms = [cosine] if degrees > 1 else []
    for k in range(1, (degrees - 1) // 2):
        terms.append(terms[-1] * cosine**2 * (2 * k) / (2 * k + 1))
    return 2 / math.pi * (angle + sine * math.fsum(terms))
