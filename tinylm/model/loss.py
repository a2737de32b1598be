"""The loss: cross-entropy of the next tokens, computed with the head.

It is part of the network's program, so that a compiled step widens the logits while it reads them: they are never
stored in float32, in which those of GPT-2's vocabulary need more memory than all else in a step.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.normalization import widened

IGNORE = -100  # a target left out of the loss


def summed_loss(head: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in nats over all targets but IGNORE, a scalar.

    Args:
        head: projection to logits, (B, T, D) -> (B, T, V)
        x: normalized output of the last block, (B, T, D)
        targets: the next tokens, (B, T)
    """
    logits = widened(head(x)).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
