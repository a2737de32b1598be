"""The feed-forward layer: activations against Python's math, layers against loops."""

import math

import pytest
import torch

from tests.strategies import random_model
from tinylm.model import ModelConfig
from tinylm.model.feedforward import ACTIVATIONS

FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_matches_its_formula(name):
    x = torch.linspace(-8, 8, 321, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, rtol=0, atol=1e-13)


def linear(layer, x):
    """Applies a linear layer to one vector, product by product."""
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def feedforward_by_hand(layer, activation, x):
    hidden = linear(layer.input, x)
    if activation == "swiglu":
        gates = [FORMULAS["silu"](value) for value in linear(layer.gate, x)]
        return linear(layer.output, [gate * value for gate, value in zip(gates, hidden, strict=True)])
    return linear(layer.output, [FORMULAS[activation](value) for value in hidden])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", *sorted(ACTIVATIONS)])
def test_feedforward_layer_matches_loops(activation, bias):
    config = ModelConfig(vocab_size=2, d_model=8, num_heads=2, num_layers=1, d_ff=11, activation=activation, bias=bias)
    layer = random_model(config).blocks[0].feedforward
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [feedforward_by_hand(layer, activation, row) for row in x.flatten(0, 1).tolist()]
    torch.testing.assert_close(
        layer(x).flatten(0, 1).detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )
