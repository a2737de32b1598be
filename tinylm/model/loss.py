"""The loss: cross-entropy of the next tokens, computed with the head.

The loss is part of the network's forward pass, so a compiled step converts the logits to float32 while it reads them
and never stores them in float32. With GPT-2's vocabulary they would need more memory than everything else in a step.

With `rows`, even the low-precision logits never exist as a whole: the gradient of softmax and cross-entropy follows
from the logits, so each chunk of rows adds its share to the gradients of x and of the head and is then dropped.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.normalization import widened

IGNORE = -100  # a target left out of the loss


def summed_loss(head: nn.Module, x: Tensor, targets: Tensor, rows: int | None = None) -> Tensor:
    """Sum of -log p(target) in nats over all targets but IGNORE, a scalar.

    Args:
        head: projection to logits, (B, T, D) -> (B, T, V)
        x: normalized output of the last block, (B, T, D)
        targets: the next tokens, (B, T)
        rows: tokens whose logits exist at a time, if the head is a Linear without hooks. None: all
    """
    if rows is not None and type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks:
        return _LossByRows.apply(x.flatten(0, 1), head.weight, head.bias, targets.flatten(), rows)  # pyright: ignore
    logits = widened(head(x)).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")


class _LossByRows(torch.autograd.Function):
    """The loss of a linear head and its gradient, softmax(logits) - one_hot(target), in one pass over the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Tensor:
        device = x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        exact = torch.float32 if low == torch.float16 else low  # in which the small gradients of most logits survive
        loss, dx = widened(x.new_zeros(())), torch.empty_like(x)
        dweight = widened(torch.zeros_like(weight)) if weight.requires_grad else None
        dbias = None if bias is None else widened(torch.zeros_like(bias))
        with torch.autocast(device, enabled=False):
            w, b = weight.to(low), None if bias is None else bias.to(low)
            for begin in range(0, len(x), rows):
                part, target = x[begin : begin + rows], targets[begin : begin + rows, None]
                counts, target = target != IGNORE, target.clamp(min=0)
                log_p = widened(F.linear(part.to(low), w, b)).log_softmax(dim=-1)  # (rows, V)
                loss -= (log_p.gather(-1, target) * counts).sum()
                d = log_p.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=log_p.dtype)).mul_(counts)
                if dbias is not None:
                    dbias += d.sum(dim=0)
                d = d.to(exact)
                dx[begin : begin + rows] = d @ w.to(exact)
                if dweight is not None:
                    dweight += d.T @ part.to(exact)
        ctx.save_for_backward(dx, dweight, dbias)
        ctx.types = x.dtype, weight.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), types = gradients, ctx.types
        found = [None if d is None else (d * g).to(t) for d, t in zip(ctx.saved_tensors, types, strict=True)]
        return *found, None, None
