"""RMSNorm with a hand-written gradient, which makes a training step on a CPU faster.

With s = 1/sqrt(mean(x²) + eps), n = x s and y = n w, a gradient dy of the output gives

    dw = sum over all vectors of dy n
    dx = s (g - n mean(g n)),  g = dy w

since ds/dx = -s³ x / D: the component of g along x would only change the length, which the norm divides out. The
gradient of LayerNorm, given a mean of zero and this s, is the same except that it also subtracts s mean(g). PyTorch's
kernel for it reads memory once, and one matrix product gives mean(g), whereas autograd would make a dozen passes. On
other devices, and without gradients, PyTorch's fused kernel of the norm itself is faster.
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
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (dy,), (x, weight, scale) = gradients, ctx.saved_tensors
        width = x.shape[-1]
        if torch.is_grad_enabled():  # for a second derivative, in which the scale depends on x
            scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + ctx.eps)
            n, g = x * scale, dy * weight
            dx = scale * (g - n * (g * n).mean(dim=-1, keepdim=True))
            return dx, (dy * n).reshape(-1, width).sum(dim=0), None
        zero, wanted = torch.zeros_like(scale), (True, True, False)
        kernel = torch.ops.aten.native_layer_norm_backward
        dx, dweight, _ = kernel(dy, x, weight.shape, zero, scale, weight, None, wanted)
        mean = (dy.reshape(-1, width) @ weight).view_as(scale) / width
        return dx.addcmul_(mean, scale), dweight, None
