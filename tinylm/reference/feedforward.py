"""The feed-forward layer and its nonlinearities: GELU exact and by tanh, ReLU, ReLU², SwiGLU."""

import functools
import math
from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array, linear, name_gradients, row_blocks, stack
from tinylm.reference.memory import empty

BLOCK = 1 << 16  # numbers that are worked on at a time
CENTRE = 3.0  # c in `normal_tail`
DEGREES = {"float32": 7, "float64": 18}  # of its polynomial


@functools.cache
def mills_coefficients(degree: int) -> list[float]:
    """Coefficients, highest power first, of the polynomial in `normal_tail`.

    It meets R at the Chebyshev points of t in [-1, 0.5], so a in [0, 9]: beyond, φ(a) is below 1e-18.
    """

    def ratio(t: float) -> float:
        a = CENTRE * (1 + t) / (1 - t)
        return math.erfc(a / math.sqrt(2)) / 2 * math.exp(a * a / 2) * math.sqrt(2 * math.pi)

    fit = np.polynomial.Chebyshev.interpolate(np.vectorize(ratio), degree, domain=[-1.0, 0.5])
    return fit.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


def normal_tail(a: Array, density: Array) -> Array:
    """1 - Φ(a) for a >= 0, where Φ(x) = (1 + erf(x/√2)) / 2 is the normal distribution function.

    NumPy has no erf. The tail is φ(a) R(a); R, Mills' ratio, falls so gently from √(π/2) to 0 that a polynomial in
    t = (a - c) / (a + c) gives it: to 2e-7 with 8 coefficients, to 2e-15 with 19.

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
    """x Φ(x), and its slope Φ(x) + x φ(x) (Hendrycks, Gimpel 2016).

    With the tail q = 1 - Φ(|x|):  x Φ(x) = max(x, 0) - |x| q,  Φ(x) = 1/2 ± (1/2 - q) with the sign of x.
    """
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


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """x/2 (1 + t), t = tanh(u), u = √(2/π) (x + 0.044715 x³); slope (1 + t)/2 + x/2 (1 - t²) du/dx."""
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = square * (root * cubic)
    t += root
    t *= x
    np.tanh(t, out=t)
    square *= 3 * root * cubic
    square += root  # du/dx
    square *= 1 - t * t
    square *= x
    t += 1
    square += t
    square *= 0.5
    t *= x
    t *= 0.5
    return t, square


def relu(x: Array) -> tuple[Array, Array]:
    """max(x, 0), slope 1 for positive x."""
    return np.maximum(x, 0), (x > 0).astype(x.dtype)


def relu2(x: Array) -> tuple[Array, Array]:
    """max(x, 0)², slope 2 max(x, 0)."""
    y = np.maximum(x, 0)
    return y * y, 2 * y


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); where exp(-x) is infinite it is 0, as it should be."""
    y = np.negative(x)
    with np.errstate(over="ignore"):
        np.exp(y, out=y)
    y += 1
    return np.divide(1, y, out=y)


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
}


def activate(x: Array, function: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Callable]:
    """y = f(x) of every number, some rows at a time; dx = dy f'(x).

    f' has most of its work in common with f, so both are computed at once.
    """
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    for some in cached(x):
        y[some], slope[some] = function(x[some])
    return y, lambda dy: np.multiply(dy, slope, out=slope)


def swiglu(x: Array) -> tuple[Array, Callable]:
    """y = silu(g) u for x = (g, u) side by side, with silu(g) = g σ(g) (Shazeer 2020).

    As σ' = σ (1 - σ), silu'(g) = σ + g σ (1 - σ) = σ + silu(g) (1 - σ), so

        du = dy silu(g)        dg = dy u silu'(g)

    Args:
        x: (N, 2F)

    Returns:
        y, (N, F), and backward: dy -> dx
    """
    width = x.shape[1] // 2
    gate, up = x[:, :width], x[:, width:]
    y, s = empty(gate.shape, x.dtype), empty(gate.shape, x.dtype)
    for some in cached(y):
        s[some] = sigmoid(gate[some])  # σ
        np.multiply(gate[some], s[some], out=y[some])
        y[some] *= up[some]

    def backward(dy: Array) -> Array:
        dx = empty(x.shape, x.dtype)
        for some in cached(y):
            sigma, silu = s[some], gate[some] * s[some]
            np.multiply(dy[some], silu, out=dx[some, width:])
            silu *= 1 - sigma
            silu += sigma  # silu'
            silu *= up[some]
            np.multiply(dy[some], silu, out=dx[some, :width])
        return dx

    return y, backward


def cached(x: Array) -> list[slice]:
    """Slices of so many rows that the passes over them find them in the CPU's cache."""
    return row_blocks(len(x), max(BLOCK // x.shape[1], 1))


def feedforward(x: Array, weights: dict[str, Array], config: Config) -> tuple[Array, Callable]:
    """output(f(input(x))), or output(silu(gate(x)) input(x)) with gate and input as one product.

    Args:
        x: (B, T, D)
        weights: `input.weight` (F, D), for swiglu `gate.weight` (F, D), `output.weight` (D, F), their biases
        config: of the network

    Returns:
        (B, T, D), and backward: dy -> dx, gradients by name
    """
    gated = config.activation == "swiglu"
    stacked, unstack = stack(weights, ("gate", "input") if gated else ("input",))
    inside, input_back = linear(x.reshape(-1, x.shape[-1]), *stacked)  # (N, F), or (N, 2F)
    y, activation_back = swiglu(inside) if gated else activate(inside, ACTIVATIONS[config.activation])  # (N, F)
    out, output_back = linear(y, weights["output.weight"], weights.get("output.bias"))

    def backward(dout: Array) -> tuple[Array, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dy, *gradients = output_back(dout)
        name_gradients(grads, "output", gradients)
        dx, *gradients = input_back(activation_back(dy))
        return dx.reshape(x.shape), grads | unstack(*gradients)

    return out.reshape(x.shape), backward
