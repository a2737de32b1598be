"""Rotary positions: vectors turned by angles that grow with the position (chapter 2)."""

import torch
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
    return theta ** (-2 * torch.arange(width // 2) / width)


def angles(num_positions: int, width: int, theta: float = 10000.0) -> Tensor:
    """The angle of each pair at each position 0, 1, ..., which is the position times the frequency: (T, E/2).

    Example: for three positions and the width 4 they are (0, 0), (1, 0.01) and (2, 0.02).
    """
    return torch.outer(torch.arange(num_positions).float(), frequencies(width, theta))


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
    first, second = x.chunk(2, dim=-1)  # (..., T, E/2) each
    cos, sin = turns.cos(), turns.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
