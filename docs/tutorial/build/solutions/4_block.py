"""A transformer block: norm, feed-forward layer and residual stream (chapter 4)."""

from collections.abc import Callable

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean of x² + eps) * weight, the mean over the last axis.

    Args:
        x: (..., D)
        weight: (D,)
        eps: keeps the root above 0

    Returns:
        (..., D)

    Example: the mean square of (1, 7) is 25, so with weight 1 and eps 0 it becomes (0.2, 1.4).
    """
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def swiglu(x: Tensor, gate_weight: Tensor, input_weight: Tensor, output_weight: Tensor) -> Tensor:
    """The feed-forward layer of most models today: (silu(x Gᵀ) * (x Iᵀ)) Oᵀ, where silu(z) = z sigmoid(z).

    Args:
        x: (..., D)
        gate_weight: G, (F, D)
        input_weight: I, (F, D)
        output_weight: O, (D, F)

    Returns:
        (..., D)

    Example: all four arguments 1, as 1 x 1 matrices, give silu(1) = 1 / (1 + 1/e) = 0.7311.
    """
    gate = x @ gate_weight.T  # (..., F)
    return (gate * torch.sigmoid(gate) * (x @ input_weight.T)) @ output_weight.T


def block(
    x: Tensor,
    attention: Callable[[Tensor], Tensor],
    feedforward: Callable[[Tensor], Tensor],
    attention_norm: Callable[[Tensor], Tensor],
    feedforward_norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """A block: attention of the norm of x is added to x, then the feed-forward layer of the norm of that sum.

    Args:
        x: the residual stream, (..., T, D); it is not changed in place
        attention: (..., T, D) -> (..., T, D)
        feedforward: (..., T, D) -> (..., T, D)
        attention_norm: (..., T, D) -> (..., T, D)
        feedforward_norm: (..., T, D) -> (..., T, D)

    Returns:
        (..., T, D)

    Example: with norms that change nothing, attention(y) = 2 y and feedforward(y) = 10 y, 1 becomes 3, and then 33.
    """
    x = x + attention(attention_norm(x))
    return x + feedforward(feedforward_norm(x))
