"""Causal self-attention (Vaswani et al. 2017) with as many key/value heads as wanted, backward as FlashAttention's.

Heads are an axis of the arrays and never a loop. Queries are seen as (B, K, G, T, E) and keys as (B, K, 1, S, E): a
group of G query heads reads the same keys by broadcasting. These are transposed views, nothing is copied: BLAS takes
rows that lie apart.
"""

import math
from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array, linear, name_gradients, stack
from tinylm.reference.memory import empty
from tinylm.reference.normalization import rmsnorm
from tinylm.reference.positional import rotate

NAMES = ("query", "key", "value")


def hidden_keys(
    num_queries: int, num_keys: int, window: int | None, documents: Array | None, dtype: np.dtype
) -> Array | None:
    """What is added to the scores: 0 where a query sees a key, -inf where not. The queries are the last positions.

    Args:
        num_queries: T
        num_keys: S
        window: how many positions back a query sees, itself included
        documents: the document of each position, (B, S), for T = S
        dtype: of the scores

    Returns:
        (T, S), or with documents (B, 1, 1, T, S); None if all is seen, as by a single query without a window
    """
    if documents is None and num_queries == 1 and (window is None or window >= num_keys):
        return None
    query, key = np.arange(num_keys - num_queries, num_keys)[:, None], np.arange(num_keys)
    visible = key <= query  # (T, S)
    if window is not None:
        visible &= key > query - window
    if documents is not None:
        visible = (visible & (documents[:, :, None] == documents[:, None, :]))[:, None, None]
    return np.where(visible, 0, -np.inf).astype(dtype)


def attend(query: Array, key: Array, value: Array, hidden: Array | None, mask: Array | None) -> tuple[Array, Callable]:
    """softmax(q kᵀ / √E) v.

    With scores s = q kᵀ/√E, p = exp(s - max s), l = Σ_S p the weights are w = p / l and the result o = w v. p is kept
    instead of w: the division is done on o, whose rows are shorter. Backward:

        dv = wᵀ do        dw = do vᵀ        ds = w (dw - Δ),  Δ = Σ_S w dw        dq = ds k/√E        dk = dsᵀ q/√E

    (ds is the softmax's: dw less its mean under w.) Now Δ = Σ_S w (do · v) = do · o, so the sum over keys is one over
    E numbers of what is known already, and ds is written over dw (Dao et al. 2022). Besides p nothing of size (T, S)
    is kept. Everything is linear in do, so w is had as p with do / l instead of do.

    Dropout multiplies w by a mask: dv = (w mask)ᵀ do and dw = (do vᵀ) mask, while Δ = do · o stays.

    Args:
        query: q, (B, T, H, E)
        key: k, (B, S, K, E)
        value: v, (B, S, K, E)
        hidden: as `hidden_keys` gives it
        mask: of dropout, 0 or 1/(1 - p), (B, H, T, S)

    Returns:
        o, (B, T, H, E), and backward: do -> dq, dk, dv
    """
    B, T, H, E = query.shape
    K = key.shape[2]
    scale = 1 / math.sqrt(E)

    def grouped(x: Array) -> Array:
        """(B, T, heads, E) seen as (B, K, heads/K, T, E)."""
        return x.reshape(B, x.shape[1], K, -1, E).transpose(0, 2, 3, 1, 4)

    q, k, v = grouped(query * query.dtype.type(scale)), grouped(key), grouped(value)
    shape = (B, K, H // K, T, key.shape[1])
    p = np.matmul(q, k.swapaxes(-1, -2), out=empty(shape, q.dtype))  # (B, K, G, T, S)
    if hidden is not None:
        p += hidden
    p -= p.max(axis=-1, keepdims=True)
    np.exp(p, out=p)
    sums = p.sum(axis=-1, keepdims=True)  # l, (B, K, G, T, 1)
    if mask is not None:
        mask = mask.reshape(shape)
    output = empty(query.shape, query.dtype)
    o = np.matmul(p if mask is None else p * mask, v, out=grouped(output))  # (B, K, G, T, E)
    o /= sums

    def backward(doutput: Array) -> tuple[Array, Array, Array]:
        do = grouped(doutput) / sums  # (B, K, G, T, E)
        dquery, dkey, dvalue = empty(query.shape, q.dtype), empty(key.shape, q.dtype), empty(value.shape, q.dtype)
        dw = np.matmul(do, v.swapaxes(-1, -2), out=empty(shape, q.dtype))  # (B, K, G, T, S)
        if mask is None:
            over_group(p.swapaxes(-1, -2), do, grouped(dvalue))
        else:
            over_group((p * mask).swapaxes(-1, -2), do, grouped(dvalue))
            dw *= mask
        dw -= np.einsum("...e,...e->...", do, o)[..., None]
        ds = np.multiply(dw, p, out=dw)
        np.matmul(ds, k, out=grouped(dquery))
        dquery *= dquery.dtype.type(scale)
        over_group(ds.swapaxes(-1, -2), q, grouped(dkey))  # q has 1/√E in it
        return dquery, dkey, dvalue

    return output, backward


def over_group(left: Array, right: Array, out: Array) -> None:
    """Σ_G left @ right: what all queries of a group say to the keys they share, (B, K, 1, S, E)."""
    if left.shape[2] == 1:
        np.matmul(left, right, out=out)
    else:
        np.sum(left @ right, axis=2, keepdims=True, out=out)


def prepare(x: Array, weight: Array | None, eps: float, rotary: Array | None) -> tuple[Array, Callable]:
    """Queries or keys, (B, T, heads, E), normalized and rotated where that is wanted; backward: dy -> dx, dweight."""
    y, norm_back = (x, lambda dy: (dy, None)) if weight is None else rmsnorm(x, weight, eps)
    y, turn_back = (y, lambda dy: dy) if rotary is None else rotate(y, rotary)
    return y, lambda dy: norm_back(turn_back(dy))


def attention(
    x: Array,
    weights: dict[str, Array],
    config: Config,
    hidden: Array | None,
    rotary: Array | None = None,
    mask: Array | None = None,
    remember: Callable[[Array, Array], tuple[Array, Array]] | None = None,
) -> tuple[Array, Callable]:
    """One layer: projects to queries, keys and values by a single product, attends, and projects back.

    Args:
        x: (B, T, D)
        weights: `query.weight` (H E, D), `key.weight`, `value.weight` (K E, D), `output.weight` (D, H E), their biases,
            `query_norm.weight` and `key_norm.weight` (E,)
        config: of the network
        hidden: as `hidden_keys` gives it
        rotary: the rows of `rotary_table` for these positions
        mask: of dropout, for the attention weights
        remember: takes the new keys and values, (B, T, K, E), and gives all that may be seen, (B, S, K, E)

    Returns:
        (B, T, D), and backward: dy -> dx, gradients by name
    """
    B, T, _ = x.shape
    H, K, E = config.num_heads, config.kv_heads, config.head_dim
    stacked, unstack = stack(weights, NAMES)
    projected, project_back = linear(x, *stacked)  # (B, T, (H + 2K) E)
    heads = projected.reshape(B, T, H + 2 * K, E)
    query, key, value = heads[:, :, :H], heads[:, :, H : H + K], heads[:, :, H + K :]
    query, query_back = prepare(query, weights.get("query_norm.weight"), config.norm_eps, rotary)
    key, key_back = prepare(key, weights.get("key_norm.weight"), config.norm_eps, rotary)
    if remember is not None:
        key, value = remember(key, value)
    attended, attend_back = attend(query, key, value, hidden, mask)  # (B, T, H, E)
    y, output_back = linear(attended.reshape(B, T, H * E), weights["output.weight"], weights.get("output.bias"))

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dattended, *gradients = output_back(dy)
        name_gradients(grads, "output", gradients)
        dquery, dkey, dvalue = attend_back(dattended.reshape(attended.shape))
        dquery, dquery_norm = query_back(dquery)
        dkey, dkey_norm = key_back(dkey)
        if config.qk_norm:
            grads |= {"query_norm.weight": dquery_norm, "key_norm.weight": dkey_norm}
        dprojected = np.concatenate((dquery, dkey, dvalue), axis=2)
        dx, *gradients = project_back(dprojected)
        grads |= unstack(*gradients)
        return dx, grads

    return y, backward
