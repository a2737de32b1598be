"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019), over the last axis."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array


def row_dots(a: Array, b: Array) -> Array:
    """Σ_i a_i b_i of each row, in one pass: (..., D), (..., D) -> (..., 1)."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, Callable]:
    """y = n w, n = x s, s = 1/√(mean(x²) + eps).

    With g = dy w, the gradient with respect to n:

        dw = Σ dy n, over all rows
        dx = s g + (Σ_i g_i x_i) ds/dx = s (g - n mean(g n))

    since ds/dx = -s³ x / D: what of g points along x would only change the length that the norm takes out again.

    Args:
        x: (..., D)
        weight: w, (D,)
        eps: keeps a row of zeros from being divided by zero

    Returns:
        y, (..., D), and backward: dy -> dx, dw
    """
    width = x.shape[-1]
    s = 1 / np.sqrt(row_dots(x, x) / width + eps)  # (..., 1)
    n = x * s  # (..., D)

    def backward(dy: Array) -> tuple[Array, Array]:
        dw = np.einsum("ri,ri->i", dy.reshape(-1, width), n.reshape(-1, width))
        g = dy * weight
        g -= n * (row_dots(g, n) / width)
        g *= s
        return g, dw

    return n * weight, backward


def layernorm(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, Callable]:
    """y = n w + b, n = (x - mean(x)) s, s = 1/√(variance(x) + eps).

    The centred x goes through an RMSNorm; centring takes the mean of a row away, and so it does with the gradient,
    being a symmetric matrix (1 - 11ᵀ/D):

        dx = s (g - mean(g) - n mean(g n)),  g = dy w

    (that n has mean 0 makes the three terms so short). db is the sum of dy over all rows.

    Args:
        x: (..., D)
        weight: w, (D,)
        bias: b, (D,)
        eps: keeps a constant row from being divided by zero

    Returns:
        y, (..., D), and backward: dy -> dx, dw, db
    """
    width = x.shape[-1]
    n = x - x.mean(axis=-1, keepdims=True)  # (..., D)
    s = 1 / np.sqrt(row_dots(n, n) / width + eps)  # (..., 1)
    n *= s
    y = n * weight
    if bias is not None:
        y += bias

    def backward(dy: Array) -> tuple[Array, Array, Array | None]:
        rows = dy.reshape(-1, width)
        dw, db = np.einsum("ri,ri->i", rows, n.reshape(-1, width)), None if bias is None else rows.sum(axis=0)
        g = dy * weight
        along = row_dots(g, n) / width
        g -= g.mean(axis=-1, keepdims=True)
        g -= n * along
        g *= s
        return g, dw, db

    return y, backward


def norm(x: Array, weights: dict[str, Array], config: Config) -> tuple[Array, Callable]:
    """The norm that the config names.

    Args:
        x: (..., D)
        weights: `weight` and perhaps `bias`, (D,)
        config: of the network

    Returns:
        (..., D), and backward: dy -> dx, gradients by name
    """
    weight, bias = weights["weight"], weights.get("bias")
    if config.norm == "rmsnorm":
        y, back = rmsnorm(x, weight, config.norm_eps)
    else:
        y, back = layernorm(x, weight, bias, config.norm_eps)

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        dx, *gradients = back(dy)
        return dx, dict(zip(weights, gradients, strict=False))  # weight, and bias if there is one

    return y, backward
