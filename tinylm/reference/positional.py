"""Positions: a table of sines and cosines that is added to the embeddings, or rotations of queries and keys."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array


def angles(num_positions: int, width: int, theta: float) -> Array:
    """position * theta^(-2i/width), in float64: (positions, width/2)."""
    return np.outer(np.arange(num_positions), theta ** (-np.arange(0, width, 2) / width))


def sinusoidal_table(num_positions: int, width: int) -> Array:
    """Sines in the even columns, cosines in the odd ones (Vaswani et al. 2017), in float64: (positions, width)."""
    table = angles(num_positions, width, 10000.0)
    return np.stack((np.sin(table), np.cos(table)), axis=-1).reshape(num_positions, -1)[:, :width]


def rotary_table(num_positions: int, width: int, theta: float) -> Array:
    """The cosine and the sine of every position's angles, in float64: (2, positions, width/2)."""
    table = angles(num_positions, width, theta)
    return np.stack((np.cos(table), np.sin(table)))


def position_table(config: Config) -> Array:
    """The table of fixed numbers that the config's positions need; of size 0 if they need none."""
    if config.positional_encoding == "sinusoidal":
        return sinusoidal_table(config.max_seq_len, config.d_model)
    if config.positional_encoding == "rotary":
        return rotary_table(config.max_seq_len, config.head_dim, config.rope_theta)
    return np.empty(0)


def rotate(x: Array, table: Array) -> tuple[Array, Callable]:
    """Rotary positions (Su et al. 2021): the product of a query and a key depends on their distance alone.

    Each pair (x_i, x_{i+E/2}) is turned by its position's angle. The transpose of a rotation is the rotation by the
    negative angle, so backward is another rotation.

    Args:
        x: (B, T, heads, E)
        table: the rows of `rotary_table` for these positions, (2, T, E/2)

    Returns:
        (B, T, heads, E), and backward: dy -> dx
    """
    cos, sin = table[:, :, None]  # (T, 1, E/2)
    a, b = np.split(x, 2, axis=-1)  # (B, T, heads, E/2)
    y = np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=-1)
    return y, lambda dy: rotate(dy, table * np.reshape([1, -1], (2, 1, 1)).astype(x.dtype))[0]
