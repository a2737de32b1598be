"""FastTransformerLM: the same network, faster. The rest of the twin can be read, and runs, without this file.

- The sequences of a batch are shared among threads, since NumPy's own passes over an array use one thread each.
- A thread computes a few sequences at a time, so that most arrays stay in the CPU's cache.
- The C library is told to keep freed memory. By default it returns large arrays to the operating system and asks for
  them again, page by page and zero-filled, which costs about as much as writing them.
- GELU uses a polynomial instead of `math.erf`, which takes one number per call.
"""

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tinylm.reference import feedforward
from tinylm.reference.config import Config
from tinylm.reference.functions import Array
from tinylm.reference.parameters import Masks
from tinylm.reference.transformer import Grads, NumpyTransformerLM

TOKENS = 1024  # tokens computed at a time, unless a sequence is longer
NUMBERS = 1 << 16  # numbers of GELU's input computed at a time
CENTRE = 3.0  # c in `normal_tail`
DEGREES = {"float32": 7, "float64": 18}  # of its polynomial


class FastTransformerLM(NumpyTransformerLM):
    """A `NumpyTransformerLM` that computes a batch in threads, a few sequences at a time.

    Args:
        config: the architecture
        parameters: see `NumpyTransformerLM`
        threads: the number of threads. With several, BLAS should use one (OPENBLAS_NUM_THREADS=1, set before NumPy is
            imported)
        options: `seed` and `dtype` of random parameters
    """

    def __init__(
        self, config: Config, parameters: dict[str, Array] | None = None, *, threads: int = 1, **options: Any
    ) -> None:
        super().__init__(config, parameters, **options)
        self.threads = threads

    def part(self, function: Callable, x: Array, name: str, *arguments: Any) -> tuple[Array, Callable]:
        """A part of the network; the feed-forward layer is given the fast GELU."""
        more = (ACTIVATIONS,) if function is feedforward.feedforward else ()
        return super().part(function, x, name, *arguments, *more)

    def loss_and_grads(
        self,
        inputs: Array,
        targets: Array,
        *,
        documents: Array | None = None,
        num_targets: int | None = None,
        dropout: np.random.Generator | Masks | None = None,
    ) -> tuple[float, Grads]:
        """The loss and the gradients: sums over the sequences. Dropout masks are drawn for the whole batch first."""
        masks, total = self.masks_and_divisor(inputs, targets, num_targets, dropout)
        compute = super().loss_and_grads

        def some(rows: slice) -> tuple[float, Grads]:
            chosen = {name: mask[rows] for name, mask in masks.items()}
            apart = None if documents is None else documents[rows]
            return compute(inputs[rows], targets[rows], documents=apart, num_targets=total, dropout=chosen)

        def add(left: tuple[float, Grads], right: tuple[float, Grads]) -> tuple[float, Grads]:
            for name, gradient in right[1].items():
                left[1][name] += gradient
            return left[0] + right[0], left[1]

        return self._in_threads(some, add, inputs.shape)

    def evaluate(self, inputs: Array, targets: Array, documents: Array | None = None) -> tuple[float, int, int]:
        """Nats, targets and hits: sums over the sequences."""
        compute = super().evaluate

        def some(rows: slice) -> tuple[float, int, int]:
            return compute(inputs[rows], targets[rows], None if documents is None else documents[rows])

        def add(left: tuple, right: tuple) -> tuple[float, int, int]:
            return left[0] + right[0], left[1] + right[1], left[2] + right[2]

        return self._in_threads(some, add, inputs.shape)

    def _in_threads(self, some: Callable, add: Callable, shape: tuple[int, ...]) -> Any:
        """The sum of `some(rows)` over slices of the rows of a batch (B, T)."""
        B, T = shape
        threads, size = min(self.threads, B), max(TOKENS // T, 1)

        def share(thread: int) -> Any:
            first, last = B * thread // threads, B * (thread + 1) // threads
            slices = [slice(start, min(start + size, last)) for start in range(first, last, size)]
            return functools.reduce(add, map(some, slices))

        if threads == 1:
            return share(0)
        with ThreadPoolExecutor(threads) as pool:
            return functools.reduce(add, pool.map(share, range(threads)))


# --- GELU


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
    """1 - Φ(a) for a >= 0, given the density φ(a).

    The tail is φ(a) R(a); R, Mills' ratio, falls so gently from √(π/2) to 0 that a polynomial in t = (a - c) / (a + c)
    gives it: to 2e-7 with 8 coefficients, to 2e-15 with 19.
    """
    t = 1 - 2 * CENTRE / (a + a.dtype.type(CENTRE))
    coefficients = mills_coefficients(DEGREES[a.dtype.name])
    ratio = np.full_like(t, coefficients[0])
    for coefficient in coefficients[1:]:
        ratio *= t
        ratio += coefficient
    ratio *= density
    return ratio


def gelu(x: Array) -> tuple[Array, Array]:
    """x Φ(x) and its slope, by the tail q = 1 - Φ(|x|).

    x Φ(x) = max(x, 0) - |x| q, and Φ(x) = 1/2 ± (1/2 - q) with the sign of x.
    """
    y, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    flat = [each.reshape(-1) for each in (x, y, slope)]
    for start in range(0, x.size, NUMBERS):
        part, y_part, slope_part = (each[start : start + NUMBERS] for each in flat)
        a = np.abs(part)
        density = np.exp(part * part * -0.5) * (1 / math.sqrt(2 * math.pi))  # φ(x)
        tail = normal_tail(a, density)
        np.subtract(np.maximum(part, 0), a * tail, out=y_part)
        np.add(np.copysign(0.5 - tail, part) + 0.5, part * density, out=slope_part)
    return y, slope


ACTIVATIONS = feedforward.ACTIVATIONS | {"gelu": gelu}
