"""Causal self-attention (Vaswani et al. 2017), with a sliding window, documents, and grouped queries."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.cache import KVCache
from tinylm.reference.config import Config
from tinylm.reference.functions import NO_MASKS, Array, Arrays, dropout, linear, softmax, unchanged
from tinylm.reference.normalization import rmsnorm
from tinylm.reference.positional import rotate


def causal_mask(num_queries: int, num_keys: int, window: int | None, documents: Array | None, dtype: np.dtype) -> Array:
    """The mask that is added to the scores: 0 where a query sees a key, -inf elsewhere.

    Args:
        num_queries: T; the queries are the last T positions
        num_keys: S
        window: the number of positions that a query sees, its own included; None: all
        documents: the document of each position, (B, S), for T = S
        dtype: of the scores

    Returns:
        (T, S), or with documents (B, 1, T, S)
    """
    query, key = np.arange(num_keys - num_queries, num_keys)[:, None], np.arange(num_keys)
    visible = (key <= query) & (key > query - (window or num_keys))  # (T, S)
    if documents is not None:
        visible = (visible & (documents[:, :, None] == documents[:, None, :]))[:, None]
    return np.where(visible, 0, -np.inf).astype(dtype)


def attend(
    query: Array, key: Array, value: Array, mask: Array, dropped: Array | None, scale: float | None = None
) -> tuple[Array, Callable]:
    """o = w v, w = softmax(c q kᵀ + mask); all heads at once.

        dv = wᵀ do        dw = do vᵀ        dq = c ds k        dk = c dsᵀ q

    where ds is the gradient that the softmax returns for dw. A group of H/K query heads shares a key/value head: the
    keys and values are repeated for each of them, and their gradients are summed over the group. Dropout, where
    there is any, multiplies w by its mask.

    Args:
        query: q, (B, T, H, E)
        key: k, (B, S, K, E)
        value: v, (B, S, K, E)
        mask: see `causal_mask`
        dropped: the dropout mask, 0 or 1/(1 - p), (B, H, T, S); None: no dropout
        scale: c. Default: 1/√E

    Returns:
        o, (B, T, H, E), and backward: do -> dq, dk, dv
    """
    scale, group = query.shape[-1] ** -0.5 if scale is None else scale, query.shape[2] // key.shape[2]
    q = query.swapaxes(1, 2) * scale  # (B, H, T, E)
    k, v = key.repeat(group, axis=2).swapaxes(1, 2), value.repeat(group, axis=2).swapaxes(1, 2)  # (B, H, S, E)
    w, softmax_back = softmax(q @ k.swapaxes(-1, -2) + mask)  # (B, H, T, S)
    kept, dropout_back = dropout(w, dropped)

    def backward(do: Array) -> tuple[Array, Array, Array]:
        do = do.swapaxes(1, 2)  # (B, H, T, E)
        ds = softmax_back(dropout_back(do @ v.swapaxes(-1, -2)))  # (B, H, T, S)
        dk, dv = (each.swapaxes(1, 2) for each in (ds.swapaxes(-1, -2) @ q, kept.swapaxes(-1, -2) @ do))
        dk, dv = (each.reshape(*key.shape[:3], group, -1).sum(axis=3) for each in (dk, dv))  # (B, S, K, E)
        return (ds @ k).swapaxes(1, 2) * scale, dk, dv

    return (kept @ v).swapaxes(1, 2), backward


def project(x: Array, weights: Arrays, name: str, config: Config, rotary: Array | None) -> tuple[Array, Callable]:
    """Queries, keys or values of all heads, (B, T, D) -> (B, T, heads, E); backward: dy -> dx, gradients by name.

    They are normalized if there is a norm `name_norm`, each head by itself or all as one, and rotated unless `rotary`
    is None.
    """
    norm, heads = f"{name}_norm", (*x.shape[:2], -1, config.head_dim)
    y, linear_back = linear(x, weights, name)  # (B, T, heads * E)
    rows = heads if config.qk_norm_width == "head" else y.shape
    y, norm_back = rmsnorm(y.reshape(rows), weights, norm, config) if f"{norm}.weight" in weights else (y, unchanged)
    y, rotate_back = (y.reshape(heads), lambda dy: dy) if rotary is None else rotate(y.reshape(heads), rotary)

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        dy, norm_grads = norm_back(rotate_back(dy).reshape(rows))
        dx, grads = linear_back(dy.reshape(*x.shape[:2], -1))
        return dx, grads | norm_grads

    return y, backward


def attention(
    x: Array,
    weights: Arrays,
    name: str,
    config: Config,
    mask: Array,
    rotary: Array | None = None,
    masks: Arrays = NO_MASKS,
    cache: KVCache | None = None,
) -> tuple[Array, Callable]:
    """One attention layer: projects to queries, keys and values, attends, and projects back.

    Args:
        x: (B, T, D)
        weights: has as `name.` + `query.weight` (H E, D), `key.weight`, `value.weight` (K E, D), `output.weight`
            (D, H E), their biases, `query_norm.weight` and `key_norm.weight`, (E,) or of all heads
        name: of the layer
        config: the architecture
        mask: see `causal_mask`
        rotary: the rows of `rotary_table` for these positions; None: positions are encoded elsewhere
        masks: the dropout masks; `name.weights` is that of the attention weights
        cache: keys and values of earlier positions; the new ones are appended

    Returns:
        (B, T, D), and backward: dy -> dx, gradients by name
    """
    query, query_back = project(x, weights, f"{name}.query", config, rotary)
    key, key_back = project(x, weights, f"{name}.key", config, rotary)
    value, value_back = project(x, weights, f"{name}.value", config, None)
    if cache is not None:
        key, value = cache.append(name, key, value)
    attended, attend_back = attend(query, key, value, mask, masks.get(f"{name}.weights"), config.attention_scale)
    y, output_back = linear(attended.reshape(*x.shape[:2], -1), weights, f"{name}.output")

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        dattended, grads = output_back(dy)
        dquery, dkey, dvalue = attend_back(dattended.reshape(attended.shape))
        (dx_query, query_grads), (dx_key, key_grads) = query_back(dquery), key_back(dkey)
        dx_value, value_grads = value_back(dvalue)
        return dx_query + dx_key + dx_value, grads | query_grads | key_grads | value_grads

    return y, backward
