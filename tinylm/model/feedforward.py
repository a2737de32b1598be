"""The feed-forward layer: two linear layers with a nonlinearity between them, applied to each position independently.

Activations: GELU, exact and in GPT-2's tanh form (Hendrycks, Gimpel 2016), ReLU, ReLU² (So et al. 2021), and the gated
SwiGLU (Shazeer 2020), whose second input projection decides how much of each unit passes.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.config import ModelConfig


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), where Φ is the normal distribution function."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))), GPT-2's approximation."""
    return F.gelu(x, approximate="tanh")


def relu(x: Tensor) -> Tensor:
    """max(x, 0)"""
    return F.relu(x)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)²"""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {each.__name__: each for each in (gelu, gelu_tanh, relu, relu2)}


def make_activation(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """The activation that the config names: one of `ACTIVATIONS`, or a plug-in, a function or a module."""
    part = config.activation
    if isinstance(part, str):
        return ACTIVATIONS[part]
    if isinstance(part.load("activation"), type):
        return part.make(field="activation", kind=nn.Module)
    return partial(part.load(), **part.init_args) if part.init_args else part.load()


class FeedForward(nn.Module):
    """output(activation(input(x)))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = make_activation(config)
        self.input = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.output = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return self.output(self.activation(self.input(x)))  # inside: (B, T, F)


class SwiGLU(nn.Module):
    """output(silu(gate(x)) * input(x)), where silu(x) = x sigmoid(x)"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.input = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.output = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return self.output(F.silu(self.gate(x)) * self.input(x))  # inside: (B, T, F)


def make_feedforward(config: ModelConfig) -> FeedForward | SwiGLU:
    """The feed-forward layer that the config names, or a plug-in with the same call."""
    if config.feedforward is not None:
        return config.feedforward.make(config, field="feedforward", kind=nn.Module)
    return SwiGLU(config) if config.activation == "swiglu" else FeedForward(config)
