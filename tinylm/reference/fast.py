"""FastTransformerLM: the same network, tuned for speed. The rest of the twin can be read, and runs, without this file.

Each function here replaces the function of its name in the modules that this one imports, and is held equal to it by
tests/reference/test_fast.py; the mathematics is explained there and not repeated. What makes it faster:

- threads over the sequences of a batch: NumPy's own passes over an array use one thread each;
- memory of large arrays is used again, and most passes write in place;
- elementwise functions and the logits are computed for some rows at a time, which stay in the CPU's cache;
- linear maps of the same input are one product of their stacked weights;
- the attention's backward is FlashAttention's (Dao et al. 2022), and erf is a polynomial.
"""

import functools
import math
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tinylm.reference import attention as plain_attention
from tinylm.reference import feedforward as plain_feedforward
from tinylm.reference import functions, normalization
from tinylm.reference.cache import KVCache
from tinylm.reference.config import Config
from tinylm.reference.functions import IGNORED, Array, Arrays
from tinylm.reference.parameters import Masks, draw_masks
from tinylm.reference.transformer import Grads, NumpyTransformerLM

POOLED = 1 << 16  # bytes; allocating less costs next to nothing
CACHED = 1 << 16  # numbers of an array that elementwise functions work on at a time
LOGITS = 1 << 18  # logits that exist at a time
CENTRE = 3.0  # c in `normal_tail`
DEGREES = {"float32": 7, "float64": 18}  # of its polynomial


# --- memory

_free: dict[int, list[Array]] = defaultdict(list)  # by size in bytes, a power of two


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Like `np.empty`, from memory that earlier arrays have left.

    A fresh array of megabytes comes from the operating system page by page, zero-filled, which costs about as much as
    writing it. When an array of this function and all its views are gone, its memory is free again.
    """
    count = math.prod(shape)
    size = 1 << (count * dtype.itemsize - 1).bit_length()  # few sizes, so that little memory lies idle
    if size < POOLED:
        return np.empty(shape, dtype)
    free = _free[size]
    try:  # not `if free`: another thread may take the last one
        memory = free.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    # Through a buffer, since the view of a view refers to the owner of the memory, which must be `owner`.
    owner = np.frombuffer(memory.data, dtype, count)
    weakref.finalize(owner, free.append, memory).atexit = False
    return owner.reshape(shape)


def row_blocks(num_rows: int, size: int) -> list[slice]:
    """Slices of `size` rows, the last one shorter: `row_blocks(5, 2)` takes rows 0-1, 2-3 and 4."""
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def cached_rows(x: Array) -> list[slice]:
    """Slices of as many rows as stay in the CPU's cache between two passes."""
    return row_blocks(len(x), max(CACHED // x.shape[1], 1))


# --- functions


def linear(x: Array, weights: Arrays, *names: str) -> tuple[Array, Callable]:
    """One linear map, or several of the same input, whose outputs lie side by side."""
    weight = np.concatenate([weights[f"{name}.weight"] for name in names])  # (O, I)
    bias = np.concatenate([weights[f"{name}.bias"] for name in names]) if f"{names[0]}.bias" in weights else None
    rows = x.reshape(-1, x.shape[-1])  # (N, I)
    y = np.matmul(rows, weight.T, out=empty((len(rows), len(weight)), x.dtype))
    if bias is not None:
        y += bias

    def backward(dy: Array) -> tuple[Array, Grads]:
        dy = dy.reshape(y.shape)
        dx = np.matmul(dy, weight, out=empty(rows.shape, x.dtype))
        found = {"weight": dy.T @ rows} | ({} if bias is None else {"bias": dy.sum(axis=0)})
        ends = np.cumsum([len(weights[f"{name}.weight"]) for name in names])[:-1]
        parts = {kind: np.split(gradient, ends) for kind, gradient in found.items()}
        return dx.reshape(x.shape), {f"{name}.{kind}": parts[kind][i] for kind in parts for i, name in enumerate(names)}

    return y.reshape(*x.shape[:-1], len(weight)), backward


def embedding(ids: Array, weights: Arrays, name: str, *_: object) -> tuple[Array, Callable]:
    """Sorted by id, the rows of a gradient are runs, which `np.add.reduceat` sums at once."""
    table = weights[f"{name}.weight"]

    def backward(dx: Array) -> tuple[None, Grads]:
        order = np.argsort(ids, axis=None, kind="stable")  # (N,)
        found, starts = np.unique(ids.ravel()[order], return_index=True)
        dtable = np.zeros_like(table)
        dtable[found] = np.add.reduceat(dx.reshape(-1, dx.shape[-1])[order], starts)
        return None, {f"{name}.weight": dtable}

    return np.take(table, ids, axis=0), backward


def cross_entropy(x: Array, weight: Array, targets: Array, num_targets: int) -> tuple[float, Array, Array]:
    """The loss of hidden states x, (N, D), under the head's matrix, (V, D), with both gradients.

    dz is known as soon as z is, so both products with it are taken for some rows at a time, and the (N, V) matrix never
    exists. One buffer holds the logits, then exp(z - max z), then dz.
    """
    counted = targets != IGNORED  # (N,)
    dx, dweight, total = empty(x.shape, x.dtype), np.zeros_like(weight), 0.0
    blocks = row_blocks(len(x), max(LOGITS // len(weight), 64))
    buffer = empty((blocks[0].stop, len(weight)), x.dtype)
    for block in blocks:
        valid, row = counted[block], np.arange(len(targets[block]))
        target = np.where(valid, targets[block], 0)
        z = np.matmul(x[block], weight.T, out=buffer[: len(row)])  # (n, V)
        z -= z.max(axis=-1, keepdims=True)
        right = z[row, target]
        sums = np.exp(z, out=z).sum(axis=-1)
        total += float(np.sum(np.log(sums) - right, where=valid, dtype=np.float64))
        z *= (valid / (num_targets * sums)).astype(x.dtype)[:, None]
        z[row, target] -= (valid / num_targets).astype(x.dtype)
        np.matmul(z, weight, out=dx[block])
        dweight += z.T @ x[block]
    return total / num_targets, dx, dweight


# --- norms and rotations


def row_dots(a: Array, b: Array) -> Array:
    """Σ_i a_i b_i of each row, in one pass: (..., D), (..., D) -> (..., 1)."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def rmsnorm(x: Array, weights: Arrays, name: str, config: Config) -> tuple[Array, Callable]:
    """Row sums by `einsum`, without an array of squares; backward in place."""
    weight = weights[f"{name}.weight"]
    s = 1 / np.sqrt(row_dots(x, x) / len(weight) + config.norm_eps)
    n = x * s

    def backward(dy: Array) -> tuple[Array, Grads]:
        dweight = np.einsum("ri,ri->i", dy.reshape(-1, len(weight)), n.reshape(-1, len(weight)))
        g = dy * weight
        g -= n * (row_dots(g, n) / len(weight))
        g *= s
        return g, {f"{name}.weight": dweight}

    return n * weight, backward


def layernorm(x: Array, weights: Arrays, name: str, config: Config) -> tuple[Array, Callable]:
    """An `rmsnorm` of the centred x, in place."""
    y, rms_back = rmsnorm(x - x.mean(axis=-1, keepdims=True), weights, name, config)
    bias = weights.get(f"{name}.bias")
    if bias is not None:
        y += bias

    def backward(dy: Array) -> tuple[Array, Grads]:
        dx, grads = rms_back(dy)
        dx -= dx.mean(axis=-1, keepdims=True)
        return dx, grads if bias is None else grads | {f"{name}.bias": dy.reshape(-1, len(bias)).sum(axis=0)}

    return y, backward


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates each pair (x_i, x_{i+E/2}) by its angle; cos and sin (T, 1, E/2), x (B, T, heads, E)."""
    half = x.shape[-1] // 2
    first, second, y = x[..., :half], x[..., half:], np.empty(x.shape, x.dtype)
    np.multiply(first, cos, out=y[..., :half])
    y[..., :half] -= second * sin
    np.multiply(second, cos, out=y[..., half:])
    y[..., half:] += first * sin
    return y


# --- attention


def attend(query: Array, key: Array, value: Array, mask: Array, dropped: Array | None) -> tuple[Array, Callable]:
    """Attention that keeps p = exp(s - max s) of the scores s, and nothing else of size (T, S).

    With l = Σ_S p the weights are w = p / l. The division is done on o, whose rows are shorter, and in backward on do.
    The softmax's ds = w (dw - Δ) has Δ = Σ_S w dw = Σ_S w (do · v) = do · o, a sum over E numbers instead of S keys.

    Queries are seen as (B, K, G, T, E) and keys as (B, K, 1, S, E): the G = H / K queries of a group read the same keys
    by broadcasting. These are transposed views; nothing is copied.
    """
    B, T, H, E = query.shape
    S, K = key.shape[1:3]
    scale = query.dtype.type(1 / math.sqrt(E))

    def grouped(x: Array) -> Array:
        """(B, T, heads, E) seen as (B, K, heads/K, T, E)."""
        return x.reshape(B, x.shape[1], K, -1, E).transpose(0, 2, 3, 1, 4)

    q, k, v, shape = grouped(query * scale), grouped(key), grouped(value), (B, K, H // K, T, S)
    p = np.matmul(q, k.swapaxes(-1, -2), out=empty(shape, q.dtype))  # (B, K, G, T, S)
    if T > 1 or np.any(mask):
        p += mask if mask.ndim == 2 else mask[:, :, None]
    p -= p.max(axis=-1, keepdims=True)
    np.exp(p, out=p)
    sums = p.sum(axis=-1, keepdims=True)  # l, (B, K, G, T, 1)
    dropped = None if dropped is None else dropped.reshape(shape)
    output = empty(query.shape, query.dtype)
    o = np.matmul(p if dropped is None else p * dropped, v, out=grouped(output))  # (B, K, G, T, E)
    o /= sums

    def backward(doutput: Array) -> tuple[Array, Array, Array]:
        do = grouped(doutput) / sums  # (B, K, G, T, E)
        dquery, dkey, dvalue = empty(query.shape, q.dtype), empty(key.shape, q.dtype), empty(value.shape, q.dtype)
        dw = np.matmul(do, v.swapaxes(-1, -2), out=empty(shape, q.dtype))  # (B, K, G, T, S)
        sum_over_group((p if dropped is None else p * dropped).swapaxes(-1, -2), do, grouped(dvalue))
        if dropped is not None:
            dw *= dropped
        dw -= row_dots(do, o)
        ds = np.multiply(dw, p, out=dw)
        np.matmul(ds, k, out=grouped(dquery))
        dquery *= scale
        sum_over_group(ds.swapaxes(-1, -2), q, grouped(dkey))  # q includes the factor 1/√E
        return dquery, dkey, dvalue

    return output, backward


def sum_over_group(left: Array, right: Array, out: Array) -> None:
    """Σ_G left @ right: the contributions of all queries of a group to the keys that they share, (B, K, 1, S, E)."""
    if left.shape[2] == 1:
        np.matmul(left, right, out=out)
    else:
        np.sum(left @ right, axis=2, keepdims=True, out=out)


def attention(
    x: Array,
    weights: Arrays,
    name: str,
    config: Config,
    mask: Array,
    rotary: Array | None = None,
    dropped: Array | None = None,
    cache: KVCache | None = None,
) -> tuple[Array, Callable]:
    """Queries, keys and values by a single product."""
    B, T, _ = x.shape
    H, K, E = config.num_heads, config.kv_heads, config.head_dim
    cos, sin = (0, 0) if rotary is None else rotary[:, :, None]  # (T, 1, E/2)
    projected, project_back = linear(x, weights, *(f"{name}.{part}" for part in ("query", "key", "value")))
    heads = projected.reshape(B, T, H + 2 * K, E)
    parts, norm_backs = [heads[:, :, :H], heads[:, :, H : H + K]], []
    for i, part in enumerate(("query", "key")):
        if config.qk_norm:
            parts[i], back = rmsnorm(parts[i], weights, f"{name}.{part}_norm", config)
            norm_backs.append(back)
        if rotary is not None:
            parts[i] = turn(parts[i], cos, sin)
    query, key, value = *parts, heads[:, :, H + K :]
    if cache is not None:
        key, value = cache.append(name, key, value)
    attended, attend_back = attend(query, key, value, mask, dropped)  # (B, T, H, E)
    y, output_back = linear(attended.reshape(B, T, H * E), weights, f"{name}.output")

    def backward(dy: Array) -> tuple[Array, Grads]:
        dattended, grads = output_back(dy)
        *dparts, dvalue = attend_back(dattended.reshape(attended.shape))
        for i in range(2):
            if rotary is not None:
                dparts[i] = turn(dparts[i], cos, -sin)
            if config.qk_norm:
                dparts[i], found = norm_backs[i](dparts[i])
                grads |= found
        dx, found = project_back(np.concatenate((*dparts, dvalue), axis=2))
        return dx, grads | found

    return y, backward


# --- feed-forward


@functools.cache
def mills_coefficients(degree: int) -> list[float]:
    """Coefficients, highest power first, of the polynomial in `normal_tail`.

    It meets R at the Chebyshev points of t in [-1, 0.5], so for a in [0, 9]: beyond, φ(a) is below 1e-18.
    """

    def ratio(t: float) -> float:
        a = CENTRE * (1 + t) / (1 - t)
        return math.erfc(a / math.sqrt(2)) / 2 * math.exp(a * a / 2) * math.sqrt(2 * math.pi)

    fit = np.polynomial.Chebyshev.interpolate(np.vectorize(ratio), degree, domain=[-1.0, 0.5])
    return fit.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


def normal_tail(a: Array, density: Array) -> Array:
    """1 - Φ(a) for a >= 0.

    The tail is φ(a) R(a); R, Mills' ratio, falls so gently from √(π/2) to 0 that a polynomial in t = (a - c) / (a + c)
    gives it: to 2e-7 with 8 coefficients, to 2e-15 with 19.

    Args:
        a: not negative
        density: φ(a)
    """
    t = a + a.dtype.type(CENTRE)
    np.divide(-2 * CENTRE, t, out=t)
    t += 1
    coefficients = mills_coefficients(DEGREES[a.dtype.name])
    ratio = np.full_like(t, coefficients[0])
    for coefficient in coefficients[1:]:
        ratio *= t
        ratio += coefficient
    ratio *= density
    return ratio


def gelu(x: Array) -> tuple[Array, Array]:
    """By the tail q = 1 - Φ(|x|):  x Φ(x) = max(x, 0) - |x| q,  Φ(x) = 1/2 ± (1/2 - q) with the sign of x."""
    a = np.abs(x)
    density = x * x
    density *= -0.5
    np.exp(density, out=density)
    density *= 1 / math.sqrt(2 * math.pi)  # φ(x)
    tail = normal_tail(a, density)
    density *= x
    slope = np.copysign(0.5 - tail, x)
    slope += 0.5
    slope += density
    a *= tail
    return np.subtract(np.maximum(x, 0), a, out=a), slope


ACTIVATIONS = plain_feedforward.ACTIVATIONS | {"gelu": gelu}


def activate(x: Array, function: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Callable]:
    """y = f(x), some rows at a time; dx = dy f'(x), over the memory of f'(x)."""
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    for rows in cached_rows(x):
        y[rows], slope[rows] = function(x[rows])
    return y, lambda dy: np.multiply(dy, slope, out=slope)


def swiglu(x: Array) -> tuple[Array, Callable]:
    """The gate and the input lie side by side, (N, 2F) -> (N, F); some rows at a time."""
    width = x.shape[1] // 2
    gate, up = x[:, :width], x[:, width:]
    y, sigma = empty(gate.shape, x.dtype), empty(gate.shape, x.dtype)
    for rows in cached_rows(y):
        s = np.negative(gate[rows])
        with np.errstate(over="ignore"):
            np.exp(s, out=s)
        s += 1
        np.divide(1, s, out=sigma[rows])
        np.multiply(gate[rows], sigma[rows], out=y[rows])
        y[rows] *= up[rows]

    def backward(dy: Array) -> Array:
        dx = empty(x.shape, x.dtype)
        for rows in cached_rows(y):
            s, silu = sigma[rows], gate[rows] * sigma[rows]
            np.multiply(dy[rows], silu, out=dx[rows, width:])
            silu *= 1 - s
            silu += s  # silu'
            silu *= up[rows]
            np.multiply(dy[rows], silu, out=dx[rows, :width])
        return dx

    return y, backward


def feedforward(x: Array, weights: Arrays, name: str, config: Config) -> tuple[Array, Callable]:
    """For SwiGLU, the gate and the input by a single product."""
    gated = config.activation == "swiglu"
    names = [f"{name}.{part}" for part in (("gate", "input") if gated else ("input",))]
    inner, inner_back = linear(x.reshape(-1, x.shape[-1]), weights, *names)  # (N, F), or (N, 2F)
    y, activation_back = swiglu(inner) if gated else activate(inner, ACTIVATIONS[config.activation])  # (N, F)
    out, output_back = linear(y, weights, f"{name}.output")

    def backward(dout: Array) -> tuple[Array, Grads]:
        dy, grads = output_back(dout)
        dx, found = inner_back(activation_back(dy))
        return dx.reshape(x.shape), grads | found

    return out.reshape(x.shape), backward


# --- the network

FAST = {
    functions.embedding: embedding,
    normalization.rmsnorm: rmsnorm,
    normalization.layernorm: layernorm,
    plain_attention.attention: attention,
    plain_feedforward.feedforward: feedforward,
}


class FastTransformerLM(NumpyTransformerLM):
    """A `NumpyTransformerLM` that computes the parts of a batch in threads, by the functions of this file.

    Args:
        config: the architecture
        parameters: see `NumpyTransformerLM`
        threads: parts of a batch that are computed at a time. With several, BLAS should use one thread
            (OPENBLAS_NUM_THREADS=1, set before NumPy is imported)
        options: `seed` and `dtype` of random parameters
    """

    def __init__(self, config: Config, parameters: dict[str, Array] | None = None, *, threads: int = 1, **options):
        super().__init__(config, parameters, **options)
        self.threads = threads

    def part(self, function: Callable, x: Array, name: str, *arguments: object) -> tuple[Array, Callable]:
        """A part of the network, by its fast function."""
        return super().part(FAST[function], x, name, *arguments)

    def head_loss(self, x: Array, targets: Array, num_targets: int) -> tuple[float, Array, Array]:
        """The loss of hidden states, without a matrix of all logits."""
        return cross_entropy(x, self.parameters[f"{self.head}.weight"], targets, num_targets)

    def loss_and_grads(
        self,
        inputs: Array,
        targets: Array,
        *,
        documents: Array | None = None,
        num_targets: int | None = None,
        dropout: np.random.Generator | Masks | None = None,
    ) -> tuple[float, Grads]:
        """The loss and the gradients; each thread takes some sequences. Masks are drawn for the whole batch first."""
        drawn = isinstance(dropout, np.random.Generator)
        masks = draw_masks(self.config, inputs.shape, dropout, self.dtype) if drawn else dropout or {}
        total = max(int(np.sum(targets != IGNORED)), 1) if num_targets is None else num_targets
        compute = super().loss_and_grads

        def share(rows: slice) -> tuple[float, Grads]:
            some = {name: mask[rows] for name, mask in masks.items()}
            apart = None if documents is None else documents[rows]
            return compute(inputs[rows], targets[rows], documents=apart, num_targets=total, dropout=some)

        losses, grads = zip(*self._in_threads(share, len(inputs)), strict=True)
        return sum(losses), {name: functools.reduce(np.add, [each[name] for each in grads]) for name in grads[0]}

    def evaluate(self, inputs: Array, targets: Array, documents: Array | None = None) -> tuple[float, int, int]:
        """Nats, targets and hits; each thread takes some sequences."""
        compute = super().evaluate

        def share(rows: slice) -> tuple[float, int, int]:
            return compute(inputs[rows], targets[rows], None if documents is None else documents[rows])

        nats, counts, hits = zip(*self._in_threads(share, len(inputs)), strict=True)
        return sum(nats), sum(counts), sum(hits)

    def _in_threads(self, share: Callable, num_rows: int) -> list:
        """The results of `share` for slices of the rows, one slice a thread."""
        count = min(self.threads, num_rows)
        slices = [slice(num_rows * i // count, num_rows * (i + 1) // count) for i in range(count)]
        if count == 1:
            return [share(slices[0])]
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(share, slices))
