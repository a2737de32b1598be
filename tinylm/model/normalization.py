"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019).

Both bring every vector of width D to a standard size and then rescale each coordinate by a learned weight. They are
computed in float32 at least: the mean square of a bfloat16 vector would keep two decimal digits.
"""

from typing import Any

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
        if x.device.type != "cpu" or not torch.is_grad_enabled():  # one fused kernel
            return F.rms_norm(x.type_as(self.weight), self.weight.shape, self.weight, self.eps).type_as(x)
        wide = widened(x)
        return _RMSNormFunction.apply(wide, self.weight.type_as(wide), self.eps).type_as(x)  # pyright: ignore


class _RMSNormFunction(torch.autograd.Function):
    """RMSNorm with its gradient by hand: on a CPU a tenth of a training step is saved.

    With s = 1/sqrt(mean(x²) + eps), n = x s and y = n w, a gradient dy at the output gives

        dw = sum over all vectors of dy n
        dx = s (g - n mean(g n)),  g = dy w

    since ds/dx = -s³ x / D: what of g points along x only changes the size that the norm takes out again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return x * _scale(x, eps) * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (dy,) = gradients
        x, weight = ctx.saved_tensors
        scale = _scale(x, ctx.eps)
        normalized = x * scale
        dweight = (dy * normalized).reshape(-1, x.shape[-1]).sum(dim=0)
        g = dy * weight
        along = (g * normalized).mean(dim=-1, keepdim=True)
        return torch.addcmul(g, normalized, along, value=-1) * scale, dweight, None


def widened(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _scale(x: Tensor, eps: float) -> Tensor:
    """1/sqrt(mean(x²) + eps) of each vector, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def make_norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """The norm of the residual stream that the config names."""
    if config.norm == "layernorm":
        return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
    return RMSNorm(config.d_model, config.norm_eps)
