"""A law of loss: fitting a power of the size to measured losses, and choosing a size by it (chapter 10)."""

from typing import NamedTuple

import numpy as np


class Law(NamedTuple):
    """The constants of L(N, D) = E + A / N^a + B / D^b, in nats per token."""

    floor: float  # E
    size_factor: float  # A
    size_power: float  # a
    data_factor: float  # B
    data_power: float  # b


def fit_power(sizes: list[float], losses: list[float], floor: float) -> tuple[float, float]:
    """Fits loss = floor + factor / size^power, where the floor is known.

    log(loss - floor) = log(factor) - power log(size) is a straight line in log(size). So the best line, by least
    squares, gives both: its slope is -power, and its value at log(size) = 0 is log(factor).

    Args:
        sizes: two different ones at least
        losses: one for each size
        floor: the loss of the best possible model

    Returns:
        factor and power

    Raises:
        ValueError: if a loss is not above the floor.

    Example: sizes 1 and 100, losses 3 and 1.2 and the floor 1 leave the excess 2 and 0.2: a factor of 2 and a power
    of 1/2.
    """
    excess = np.array(losses) - floor
    if excess.min() <= 0:
        raise ValueError(f"losses must be above the floor of {floor}, got {min(losses)}")
    slope, at_zero = np.polyfit(np.log(sizes), np.log(excess), deg=1)
    return float(np.exp(at_zero)), float(-slope)


def loss(law: Law, params: float, tokens: float) -> float:
    """The loss that the law expects of N = `params` parameters after D = `tokens` tokens.

    Example: E = 1, A = 2, a = 1/2, B = 10 and b = 1 give 1 + 2/10 + 10/50 = 1.4 for N = 100 and D = 50.
    """
    return law.floor + law.size_factor / params**law.size_power + law.data_factor / tokens**law.data_power


def best_size(law: Law, budget: float, sizes: list[float]) -> float:
    """The size with the lowest expected loss, if a run may take so many operations.

    A run of N parameters and D tokens takes 6 N D operations, so a larger network reads fewer tokens.

    Args:
        law: of the losses
        budget: operations of a run
        sizes: numbers of parameters to choose from

    Returns:
        one of the sizes
    """
    return min(sizes, key=lambda size: loss(law, size, budget / (6 * size)))
