"""Two losses: GRPO, which learns from rewards, and DPO, which learns from preferences (chapter 11)."""

import torch
from torch import Tensor


def advantages(rewards: Tensor) -> Tensor:
    """The rewards minus the mean of their group, divided by its standard deviation.

    The standard deviation is that of the group itself: √(mean of squares), divided by G, not G - 1. A group whose
    rewards are all equal says nothing, and its advantages are 0.

    Args:
        rewards: G completions for each of B prompts, (B, G)

    Returns:
        (B, G)

    Example: the rewards (1, 0, 0, 1) have the advantages (1, -1, -1, 1), and (1, 1, 1, 1) have (0, 0, 0, 0).
    """
    above = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = above.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 0, above / deviation.clamp(min=1e-12), 0.0)


def divergence(log_p: Tensor, log_start: Tensor) -> Tensor:
    """q/p - log(q/p) - 1 for each token, where p is the model's probability and q that of the model at the start.

    Its mean over tokens that the model writes is KL(p || start). It is never negative, and 0 where p = q.

    Args:
        log_p: log p, of any shape
        log_start: log q, of the same shape

    Example: log p = -1 and log q = -2 give 1/e + 1 - 1 = 0.3679.
    """
    return (log_start - log_p).exp() - (log_start - log_p) - 1


def grpo_loss(log_p: Tensor, log_start: Tensor, counts: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """The mean over completions of: minus the mean over a completion's tokens of A log p - beta divergence.

    Every completion counts the same, however long it is. Its tokens are those where `counts` is True; the others fill
    its row up, and what stands there must not matter.

    Args:
        log_p: log probability of each token under the model, (n, T)
        log_start: the same under the model at the start, (n, T)
        counts: which tokens belong to the completion, at least one in each row: bool (n, T)
        advantage: A of each completion, (n,)
        beta: how strongly the model is held to the start

    Returns:
        the loss, a scalar

    Example: one completion of two tokens with log p = -1 and -3, A = 2 and beta = 0 has the loss 2 · (1 + 3) / 2 = 4.
    """
    gains = advantage[:, None] * log_p - beta * divergence(log_p, log_start)  # (n, T)
    return -(torch.where(counts, gains, 0.0).sum(dim=1) / counts.sum(dim=1)).mean()


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The mean of -log sigmoid(beta (chosen - rejected)).

    It must be finite even for margins of thousands: `torch.nn.functional.logsigmoid` is.

    Args:
        chosen: log(p / start) of the chosen answers, summed over their tokens, (B,)
        rejected: that of the rejected answers, (B,)
        beta: how strongly the model is held to the start

    Returns:
        the loss, a scalar

    Example: with beta 0.1 the log ratios 0 and 0 give log 2, and 5 and -5 give 0.3133.
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected)).mean()
