"""Rotary positions: vectors turned by angles that grow with the position (chapter 2)."""

from torch import Tensor


def frequencies(width: int, theta: float = 10000.0) -> Tensor:
    """The angle from one position to the next of each pair of coordinates, in radians.

    Pair i = 0, 1, ... turns by theta^(-2 i / width).

    Args:
        width: E, even
        theta: the base

    Returns:
        (E/2,)

    Example: for the width 4 and theta 10,000 they are 1 and 0.01.
    """
    raise NotImplementedError


def angles(num_positions: int, width: int, theta: float = 10000.0) -> Tensor:
    """The angle of each pair at each position 0, 1, ..., which is the position times the frequency: (T, E/2).

    Example: for three positions and the width 4 they are (0, 0), (1, 0.01) and (2, 0.02).
    """
    raise NotImplementedError


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotates each pair of coordinates of each vector by its angle.

    Pair i consists of coordinates i and i + E/2, as in tinylm. A pair (a, b) turned by the angle t becomes
    (a cos t - b sin t, b cos t + a sin t).

    Args:
        x: (..., T, E)
        turns: the angles, (T, E/2)

    Returns:
        (..., T, E)

    Example: (1, 0) turned by a right angle, π/2, becomes (0, 1).
    """
    raise NotImplementedError
