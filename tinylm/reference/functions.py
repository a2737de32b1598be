"""Linear maps, embeddings and the loss: what the parts of the network are made of."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.memory import empty

Array = np.ndarray
IGNORED = -100  # a target that is not to be predicted, as in PyTorch
LOGITS = 1 << 18  # how many there are at a time


def linear(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Callable]:
    """y = x Wᵀ + b.

    y_no = Σ_i x_ni W_oi + b_o, so each x_ni reaches the loss through all outputs o of its row, each W_oi through all
    rows n:

        dx = dy W        dW = dyᵀ x        db = Σ_n dy_n

    Args:
        x: (..., I)
        weight: W, (O, I)
        bias: b, (O,)

    Returns:
        y, (..., O), and backward: dy -> dx, dW, db
    """
    rows = x.reshape(-1, x.shape[-1])  # (N, I)
    y = np.matmul(rows, weight.T, out=empty((len(rows), len(weight)), x.dtype))
    if bias is not None:
        y += bias

    def backward(dy: Array) -> tuple[Array, Array, Array | None]:
        dy = dy.reshape(y.shape)
        dx = np.matmul(dy, weight, out=empty(rows.shape, x.dtype))
        return dx.reshape(x.shape), dy.T @ rows, None if bias is None else dy.sum(axis=0)

    return y.reshape(*x.shape[:-1], len(weight)), backward


def stack(weights: dict[str, Array], names: tuple[str, ...]) -> tuple[tuple[Array, Array | None], Callable]:
    """Weights and biases of linear maps of the same input, one below the other: one product is faster than several.

    Returns:
        weight and bias, and what takes their gradients apart again, by name
    """
    weight = np.concatenate([weights[f"{name}.weight"] for name in names])
    biased = f"{names[0]}.bias" in weights
    bias = np.concatenate([weights[f"{name}.bias"] for name in names]) if biased else None
    ends = np.cumsum([len(weights[f"{name}.weight"]) for name in names])[:-1]

    def unstack(dweight: Array, dbias: Array | None) -> dict[str, Array]:
        grads = {f"{name}.weight": part for name, part in zip(names, np.split(dweight, ends), strict=True)}
        if dbias is not None:
            grads |= {f"{name}.bias": part for name, part in zip(names, np.split(dbias, ends), strict=True)}
        return grads

    return (weight, bias), unstack


def name_gradients(grads: dict[str, Array], name: str, gradients: list[Array | None]) -> None:
    """Files the gradients of a linear map, dW and db, under its name."""
    grads |= {f"{name}.{kind}": g for kind, g in zip(("weight", "bias"), gradients, strict=True) if g is not None}


def unchanged(x: Array) -> tuple[Array, Callable]:
    """In the place of a part that the config leaves out; backward: dy -> dy, no gradients."""
    return x, lambda dy: (dy, {})


def embedding(ids: Array, table: Array) -> tuple[Array, Callable]:
    """The row of a table for each id.

    A row's gradient is the sum of the gradients at the places where its id stands. `np.add.at` would add them one by
    one; sorted by id they are runs, which `np.add.reduceat` sums at once.

    Args:
        ids: (B, T)
        table: (V, D)

    Returns:
        (B, T, D), and backward: dx -> dtable
    """

    def backward(dx: Array) -> Array:
        order = np.argsort(ids, axis=None, kind="stable")  # (N,)
        found, starts = np.unique(ids.ravel()[order], return_index=True)
        dtable = np.zeros_like(table)
        dtable[found] = np.add.reduceat(dx.reshape(-1, dx.shape[-1])[order], starts)
        return dtable

    return np.take(table, ids, axis=0), backward


def cross_entropy(x: Array, weight: Array, targets: Array, num_targets: int) -> tuple[float, Array, Array]:
    """The mean of -log p(target), where p is the softmax of the logits z = x Wᵀ.

    -log p_t = log Σ_v exp(z_v) - z_t, and with m = max z, which cancels, no exponential overflows. Its derivative is

        dz_v = p_v - [v = t]

    whose sign is easily read: likelier than it should be, so less. One buffer is logits, then exp(z - m), then dz; and
    since dz is known as soon as z is, both products with it are taken at once, for some rows at a time: the (N, V)
    matrix never exists.

    Args:
        x: hidden states, (N, D)
        weight: of the head, (V, D)
        targets: token ids, (N,), or IGNORED
        num_targets: what the sum over targets is divided by

    Returns:
        the loss in nats, dx, dweight
    """
    counted = targets != IGNORED  # (N,)
    dx, dweight, total = empty(x.shape, x.dtype), np.zeros_like(weight), 0.0
    blocks = row_blocks(len(x), max(LOGITS // len(weight), 64))
    buffer = empty((blocks[0].stop, len(weight)), x.dtype)
    for some in blocks:
        mine, row = counted[some], np.arange(len(targets[some]))
        target = np.where(mine, targets[some], 0)
        z = np.matmul(x[some], weight.T, out=buffer[: len(row)])  # (n, V)
        z -= z.max(axis=-1, keepdims=True)
        right = z[row, target]
        sums = np.exp(z, out=z).sum(axis=-1)
        total += float(np.sum(np.log(sums) - right, where=mine, dtype=np.float64))
        z *= (mine / (num_targets * sums)).astype(x.dtype)[:, None]
        z[row, target] -= (mine / num_targets).astype(x.dtype)
        np.matmul(z, weight, out=dx[some])
        dweight += z.T @ x[some]
    return total / num_targets, dx, dweight


def row_blocks(num_rows: int, size: int) -> list[slice]:
    """Slices of `size` rows each, the last of what is left: `row_blocks(5, 2)` takes rows 0-1, 2-3 and 4."""
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
