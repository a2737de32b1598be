"""The feed-forward layer and its nonlinearities: GELU exact and by tanh, ReLU, ReLU², SwiGLU."""

# pyright: reportPossiblyUnboundVariable=false
# (a forward and its backward test the same condition)

import math
from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array, Arrays, linear

erf = np.vectorize(math.erf, otypes=[float])  # NumPy has none of its own

Activations = dict[str, Callable[[Array], tuple[Array, Array]]]  # by name: f(x) and f'(x) of every number


def gelu(x: Array) -> tuple[Array, Array]:
    """x Φ(x), and its slope Φ(x) + x φ(x) (Hendrycks, Gimpel 2016).

    Φ(x) = (1 + erf(x/√2)) / 2 is the normal distribution function, φ(x) = exp(-x²/2) / √(2π) its density.
    """
    phi = ((1 + erf(x / math.sqrt(2))) / 2).astype(x.dtype)
    return x * phi, phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """x/2 (1 + t), t = tanh(u), u = √(2/π) (x + 0.044715 x³); slope (1 + t)/2 + x/2 (1 - t²) du/dx."""
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = np.tanh(root * x * (1 + cubic * square))
    du = root * (1 + 3 * cubic * square)
    return x / 2 * (1 + t), (1 + t) / 2 + x / 2 * (1 - t * t) * du


def relu(x: Array) -> tuple[Array, Array]:
    """max(x, 0), slope 1 for positive x."""
    return np.maximum(x, 0), (x > 0).astype(x.dtype)


def relu2(x: Array) -> tuple[Array, Array]:
    """max(x, 0)², slope 2 max(x, 0)."""
    y = np.maximum(x, 0)
    return y * y, 2 * y


ACTIVATIONS: Activations = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "relu2": relu2}


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); where exp(-x) overflows to infinity the result is 0, the correct limit."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def swiglu(gate: Array, up: Array) -> tuple[Array, Callable]:
    """y = silu(g) u with silu(g) = g σ(g) (Shazeer 2020).

    As σ' = σ (1 - σ), silu'(g) = σ + g σ (1 - σ) = σ + silu(g) (1 - σ), so

        du = dy silu(g)        dg = dy u silu'(g)

    Returns:
        y, and backward: dy -> dg, du
    """
    s = sigmoid(gate)
    silu = gate * s
    return silu * up, lambda dy: (dy * up * (s + silu * (1 - s)), dy * silu)


def feedforward(
    x: Array, weights: Arrays, name: str, config: Config, activations: Activations = ACTIVATIONS
) -> tuple[Array, Callable]:
    """output(f(input(x))), or for SwiGLU output(silu(gate(x)) input(x)).

    Args:
        x: (B, T, D)
        weights: has as `name.` + `input.weight` (F, D), for SwiGLU `gate.weight` (F, D), `output.weight` (D, F), biases
        name: of the layer
        config: the architecture
        activations: the nonlinearities by name

    Returns:
        (B, T, D), and backward: dy -> dx, gradients by name
    """
    up, up_back = linear(x, weights, f"{name}.input")  # (B, T, F)
    if config.activation == "swiglu":
        gate, gate_back = linear(x, weights, f"{name}.gate")
        inner, swiglu_back = swiglu(gate, up)
    else:
        inner, slope = activations[config.activation](up)
    y, output_back = linear(inner, weights, f"{name}.output")

    def backward(dy: Array) -> tuple[Array, dict[str, Array]]:
        dinner, grads = output_back(dy)
        if config.activation != "swiglu":
            dx, up_grads = up_back(dinner * slope)
            return dx, grads | up_grads
        dgate, dup = swiglu_back(dinner)
        (dx_gate, gate_grads), (dx_up, up_grads) = gate_back(dgate), up_back(dup)
        return dx_gate + dx_up, grads | gate_grads | up_grads

    return y, backward
