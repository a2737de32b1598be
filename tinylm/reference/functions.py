"""The functions that the parts of the network are made of: linear map, embedding, dropout, softmax, cross-entropy."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

Array = np.ndarray
Arrays = Mapping[str, Array]
NO_MASKS: Arrays = MappingProxyType({})  # of dropout
IGNORED = -100  # a target that does not count, as in PyTorch


def linear(x: Array, weights: Arrays, name: str) -> tuple[Array, Callable]:
    """y = x Wᵀ + b.

    y_no = Σ_i x_ni W_oi + b_o, so x_ni reaches the loss through all outputs o of its row, and W_oi through all rows n:

        dx = dy W        dW = dyᵀ x        db = Σ_n dy_n

    Args:
        x: (..., I)
        weights: has W as `name.weight`, (O, I), and may have b as `name.bias`, (O,)
        name: of the layer

    Returns:
        y, (..., O), and backward: dy -> dx, gradients by name
    """
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        rows = dy.reshape(-1, len(weight))  # (N, O)
        grads = {f"{name}.weight": rows.T @ x.reshape(-1, x.shape[-1])}
        if bias is not None:
            grads[f"{name}.bias"] = rows.sum(axis=0)
        return dy @ weight, grads

    y = x @ weight.T
    if bias is not None:
        y += bias
    return y, backward


def embedding(ids: Array, weights: Arrays, name: str, *_: object) -> tuple[Array, Callable]:
    """The row of a table for each id. The gradient of a row is the sum over all positions that hold its id.

    Args:
        ids: of any shape
        weights: has the table as `name.weight`, (V, D)
        name: of the table

    Returns:
        (..., D), and backward: dx -> None (ids have no gradient), gradients by name
    """
    table = weights[f"{name}.weight"]

    def backward(dx: Array) -> tuple[None, dict[str, Array]]:
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids, dx)
        return None, {f"{name}.weight": dtable}

    return table[ids], backward


def unchanged(dy: Array) -> tuple[Array, dict[str, Array]]:
    """The backward of an absent part: dy -> dx, no gradients."""
    return dy, {}


def dropout(x: Array, mask: Array | None) -> tuple[Array, Callable]:
    """y = x * mask, where the mask is 0 or 1/(1 - p) (Srivastava et al. 2014); None drops nothing. dx = dy * mask."""
    return (x, lambda dy: dy) if mask is None else (x * mask, lambda dy: dy * mask)


def row_dots(a: Array, b: Array) -> Array:
    """Σ_i a_i b_i over the last axis: (..., D), (..., D) -> (..., 1)."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def softmax(z: Array) -> tuple[Array, Callable]:
    """p_i = exp(z_i) / Σ_j exp(z_j) over the last axis.

    Subtracting max z cancels in the fraction and keeps every exponential at most 1. As ∂p_i/∂z_j = p_i ([i = j] - p_j),

        dz = p (dp - Σ_i p_i dp_i)
    """
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p, lambda dp: p * (dp - row_dots(p, dp))


def cross_entropy(z: Array, targets: Array, num_targets: int) -> tuple[float, Array]:
    """The mean of -log p(target), where p is the softmax of the logits z; and its gradient.

    -log p_t = log Σ_v exp(z_v) - z_t, whose derivative is the predicted probability minus the true one:

        dz_v = p_v - [v = t]

    Args:
        z: logits, (N, V)
        targets: token ids, (N,), or IGNORED
        num_targets: the divisor of the sum over targets

    Returns:
        the loss in nats, and dz, (N, V)
    """
    counted, row = targets != IGNORED, np.arange(len(targets))  # (N,)
    targets = np.where(counted, targets, 0)
    z = z - z.max(axis=-1, keepdims=True)  # cancels, and keeps every exponential at most 1
    exponentials = np.exp(z)
    sums = exponentials.sum(axis=-1)  # (N,)
    nats = np.log(sums) - z[row, targets]
    dz = exponentials * (counted / (num_targets * sums)).astype(z.dtype)[:, None]
    dz[row, targets] -= (counted / num_targets).astype(z.dtype)
    return float(np.sum(nats, where=counted, dtype=np.float64)) / num_targets, dz
