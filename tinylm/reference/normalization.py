"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019), over the last axis."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array, Arrays, row_dots


def rmsnorm(x: Array, weights: Arrays, name: str, config: Config) -> tuple[Array, Callable]:
    """y = n w, n = x s, s = 1/√(mean(x²) + eps).

    With g = dy w, the gradient with respect to n:

        dw = Σ dy n, over all rows
        dx = s g + (Σ_i g_i x_i) ds/dx = s (g - n mean(g n))

    since ds/dx = -s³ x / D. The norm removes the length of x, so the component of g along x has no effect.

    Args:
        x: (..., D)
        weights: has w as `name.weight`, (D,)
        name: of the norm
        config: gives eps, which keeps a row of zeros from being divided by zero

    Returns:
        y, (..., D), and backward: dy -> dx, gradients by name
    """
    weight = weights[f"{name}.weight"]
    s = 1 / np.sqrt(row_dots(x, x) / len(weight) + config.norm_eps)  # (..., 1)
    n = x * s  # (..., D)

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        g = dy * weight
        dx = s * (g - n * (row_dots(g, n) / len(weight)))
        return dx, {f"{name}.weight": np.einsum("ri,ri->i", *(each.reshape(-1, len(weight)) for each in (dy, n)))}

    return n * weight, backward


def layernorm(x: Array, weights: Arrays, name: str, config: Config) -> tuple[Array, Callable]:
    """y = n w + b, n = (x - mean(x)) s, s = 1/√(variance(x) + eps).

    This is an RMSNorm of the centred x. Centring multiplies by the symmetric matrix 1 - 11ᵀ/D; so does its backward:

        dx = s (g - mean(g) - n mean(g n)),  g = dy w        db = Σ dy, over all rows

    Args:
        x: (..., D)
        weights: has w as `name.weight`, (D,), and may have b as `name.bias`, (D,)
        name: of the norm
        config: gives eps

    Returns:
        y, (..., D), and backward: dy -> dx, gradients by name
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    y, rms_back = rmsnorm(centred, weights, name, config)
    bias = weights.get(f"{name}.bias")

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        dx, grads = rms_back(dy)
        if bias is not None:
            grads[f"{name}.bias"] = dy.reshape(-1, len(bias)).sum(axis=0)
        return dx - dx.mean(axis=-1, keepdims=True), grads

    return y if bias is None else y + bias, backward


NORMS = {"rmsnorm": rmsnorm, "layernorm": layernorm}
