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
    table = np.empty((num_positions, width))
    table[:, 0::2] = np.sin(angles(num_positions, width, 10000.0))
    table[:, 1::2] = np.cos(angles(num_positions, width, 10000.0))
    return table


def rotary_table(num_positions: int, width: int, theta: float) -> Array:
    """Cosines, then sines, of every position's angles, in float64: (2, positions, width/2)."""
    table = angles(num_positions, width, theta)
    return np.stack((np.cos(table), np.sin(table)))


def position_table(config: Config) -> Array:
    """The table that the config's positions need, empty where they need none."""
    match config.positional_encoding:
        case "sinusoidal":
            return sinusoidal_table(config.max_seq_len, config.d_model)
        case "rotary":
            return rotary_table(config.max_seq_len, config.head_dim, config.rope_theta)
    return np.empty(0)


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """Turns each pair (x_i, x_{i+E/2}) by its angle; cos and sin (T, 1, E/2), x (B, T, heads, E)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]  # (B, T, heads, E/2)
    y = np.empty(x.shape, x.dtype)
    np.multiply(first, cos, out=y[..., :half])
    y[..., :half] -= second * sin
    np.multiply(second, cos, out=y[..., half:])
    y[..., half:] += first * sin
    return y


def rotate(x: Array, table: Array) -> tuple[Array, Callable]:
    """Rotary positions (Su et al. 2021): the product of a query and a key then depends on their distance alone.

    A rotation's transpose turns back, so the gradient is turned by the negative angle.

    Args:
        x: (B, T, heads, E)
        table: the rows of `rotary_table` for these positions, (2, T, E/2)

    Returns:
        (B, T, heads, E), and backward: dy -> dx
    """
    cos, sin = table[:, :, None]  # (T, 1, E/2)
    return turn(x, cos, sin), lambda dy: turn(dy, cos, -sin)
