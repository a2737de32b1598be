"""Positions: a table of sines and cosines that is added to the embeddings, or rotations of queries and keys."""

import math
from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config, RopeScaling
from tinylm.reference.functions import Array


def frequencies(width: int, theta: float) -> Array:
    """theta^(-2i/width), the angle of pair i from one position to the next, in float64: (width/2,)."""
    return theta ** (-np.arange(0, width, 2) / width)


def sinusoidal_table(num_positions: int, width: int) -> Array:
    """Sines in the even columns, cosines in the odd ones (Vaswani et al. 2017), in float64: (positions, width)."""
    table = np.outer(np.arange(num_positions), frequencies(width, 10000.0))
    return np.stack((np.sin(table), np.cos(table)), axis=-1).reshape(num_positions, -1)[:, :width]


def rotary_table(num_positions: int, width: int, theta: float, scaling: RopeScaling | None = None) -> Array:
    """The cosine and the sine of every position's angles, in float64: (2, positions, width/2).

    YaRN multiplies both by a factor, by default 1 + ln(factor)/10: its square multiplies the scores, which sharpens the
    softmax over a longer context (Peng et al. 2023).
    """
    f, amplitude = frequencies(width, theta), 1.0
    if scaling is not None:
        f = scaled(f, theta, scaling, scaling.original_max_seq_len or num_positions)
        if scaling.kind == "yarn":
            amplitude = scaling.attention_factor or 1 + math.log(scaling.factor) / 10
    table = np.outer(np.arange(num_positions), f)
    return amplitude * np.stack((np.cos(table), np.sin(table)))


def scaled(f: Array, theta: float, scaling: RopeScaling, context: int) -> Array:
    """f_i (k_i + (1 - k_i) / factor) for the frequencies f_i: a share k_i of each is kept, the rest divided.

    In training on a context of C positions, pair i turned C f_i / 2π times. Fast pairs distinguish near positions
    and are kept; slow pairs, which never completed a turn, would reach unseen angles and are slowed down.

    - linear: k = 0 for every pair (Chen et al. 2023).
    - llama3: k rises from 0 to 1 with the number of turns, from `low_freq_factor` to `high_freq_factor`.
    - yarn: k falls from 1 to 0 with i, from the pair that turns `beta_fast` times to the one that turns `beta_slow`
      times (Peng et al. 2023); C θ^(-2i/width) / 2π = turns gives i = width ln(C / (2π turns)) / (2 ln θ).
    """
    width, i = 2 * len(f), np.arange(len(f))
    if scaling.kind == "linear":
        kept = np.zeros(len(f))
    elif scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((context * f / (2 * math.pi) - low) / (high - low), 0, 1)
    else:
        turns = (scaling.beta_fast, scaling.beta_slow)
        first, last = (width * math.log(context / (2 * math.pi * each)) / (2 * math.log(theta)) for each in turns)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        kept = 1 - np.clip((i - first) / (last - first or 0.001), 0, 1)
    return f * (kept + (1 - kept) / scaling.factor)


def position_table(config: Config) -> Array:
    """The table of fixed numbers that the config's positions need; of size 0 if they need none."""
    if config.positional_encoding == "sinusoidal":
        return sinusoidal_table(config.max_seq_len, config.d_model)
    if config.positional_encoding == "rotary":
        return rotary_table(config.max_seq_len, config.rotary_dim, config.rope_theta, config.rope_scaling)
    return np.empty(0)


def rotate(x: Array, table: Array) -> tuple[Array, Callable]:
    """Rotary positions (Su et al. 2021): the product of a query and a key depends on their distance alone.

    Each pair (x_i, x_{i+R/2}) of the first R numbers of a head is turned by its position's angle; the others, if R < E,
    stay. The transpose of a rotation is the rotation by the negative angle, so backward is another rotation.

    Args:
        x: (B, T, heads, E)
        table: the rows of `rotary_table` for these positions, (2, T, R/2)

    Returns:
        (B, T, heads, E), and backward: dy -> dx
    """
    cos, sin = table[:, :, None]  # (T, 1, R/2)
    a, b, others = np.split(x, table.shape[-1] * np.array([1, 2]), axis=-1)  # (B, T, heads, R/2), R/2 and E - R
    y = np.concatenate((a * cos - b * sin, a * sin + b * cos, others), axis=-1)
    return y, lambda dy: rotate(dy, table * np.reshape([1, -1], (2, 1, 1)).astype(x.dtype))[0]
