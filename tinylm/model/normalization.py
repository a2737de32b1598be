"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019).

Both normalize the size of every vector, then scale each coordinate by a learned weight. LayerNorm, for which PyTorch's
module is used, also subtracts the mean and may add a bias. Both compute in at least float32: the mean square of a
bfloat16 vector would keep two decimal digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight, the mean over the last axis: (..., D) -> (..., D), of x's type."""
    return F.rms_norm(x.type_as(weight), weight.shape, weight, eps).type_as(x)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.function = rms_norm
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), of x's type"""
        return self.function(x, self.weight, self.eps)


class HeadsRMSNorm(RMSNorm):
    """RMSNorm over all heads of a token together, with a weight for each of their coordinates."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., heads, E) -> (..., heads, E), of x's type"""
        return super().forward(x.flatten(-2)).view_as(x)


def make_norm(config: ModelConfig) -> nn.LayerNorm | RMSNorm:
    """The norm of the residual stream that the config names, or a plug-in with the same call."""
    if not isinstance(config.norm, str):
        return config.norm.make(config.d_model, field="norm", kind=nn.Module)
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
    return RMSNorm(config.d_model, config.norm_eps)


def make_qk_norm(config: ModelConfig, heads: int) -> RMSNorm:
    """The norm of queries or keys, (..., heads, E): each head by itself, or all together."""
    if config.qk_norm_width == "head":
        return RMSNorm(config.head_dim, config.norm_eps)
    return HeadsRMSNorm(heads * config.head_dim, config.norm_eps)


def widened(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
