"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019).

Both bring every vector of width D to a standard size and then rescale each coordinate by a learned weight. They are
computed in float32 at least: the mean square of a bfloat16 vector would keep two decimal digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.config import ModelConfig


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, mean and variance over the last axis.

    PyTorch's `nn.LayerNorm` with a bias that can be left out on its own.
    """

    def __init__(self, width: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight`, the mean over the last axis: LayerNorm without centering and bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), of x's type"""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).type_as(x)


def make_norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """The norm of the residual stream that the config names."""
    if config.norm == "layernorm":
        return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
    return RMSNorm(config.d_model, config.norm_eps)
