"""RMSNorm with a hand-written gradient, which makes a training step on a CPU a tenth faster.

With s = 1/sqrt(mean(x²) + eps), n = x s and y = n w, a gradient dy of the output gives

    dw = sum over all vectors of dy n
    dx = s (g - n mean(g n)),  g = dy w

since ds/dx = -s³ x / D: the part of g along x would only change the size, which the norm divides out. Autograd makes a
dozen passes over memory for this, the code below four. On other devices, and without gradients, PyTorch's fused kernel
is faster.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tinylm.model.normalization import RMSNorm, rms_norm, widened


def tune_for_training(model: nn.Module) -> None:
    """Makes every `RMSNorm` of a model use `tuned_rms_norm`, which computes the same function."""
    for module in model.modules():
        if isinstance(module, RMSNorm) and module.function is rms_norm:
            module.function = tuned_rms_norm


def tuned_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm`: (..., D) -> (..., D), of x's type."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return rms_norm(x, weight, eps)
    wide = widened(x)
    return _RMSNorm.apply(wide, weight.type_as(wide), eps).type_as(x)  # pyright: ignore


class _RMSNorm(torch.autograd.Function):
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


def _scale(x: Tensor, eps: float) -> Tensor:
    """1/sqrt(mean(x²) + eps) of each vector, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)
