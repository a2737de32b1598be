"""A training loop: warmup and decay of the learning rate, clipping, and the steps (chapter 6)."""

from torch import Tensor, nn


def learning_rate(step: int, total_steps: int, lr: float, warmup_steps: int) -> float:
    """The learning rate of a step: a straight line up, then a straight line down to zero.

    Warmup: lr (step + 1) / (warmup_steps + 1) while step < warmup_steps. So the first step is not wasted at 0, and the
    step after the warmup is the first at lr. From there on the rate falls linearly, to 0 at step = total_steps.

    Args:
        step: steps done before this one: 0 for the first
        total_steps: steps of the run, more than warmup_steps
        lr: the highest rate
        warmup_steps: length of the warmup, 0 for none

    Example: with lr 8, 3 steps of warmup and 13 in all, the rates of steps 0, 1, 2, 3 are 2, 4, 6, 8; that of step 8
    is 4.
    """
    raise NotImplementedError


def clip(gradients: list[Tensor], max_norm: float) -> float:
    """Scales all gradients in place by one common factor, so that their common norm is at most `max_norm`.

    The common norm is that of all numbers of all gradients together: √(sum of squares).

    Returns:
        the norm before clipping

    Example: the gradients (3) and (4) have the norm 5. With `max_norm` 1 they become (0.6) and (0.8).
    """
    raise NotImplementedError


def train(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], lr: float, warmup_steps: int, max_norm: float = 1.0
) -> list[float]:
    """Trains a model in place, one step for each batch, by plain gradient descent.

    A step computes the loss of its batch, the gradients, clips them, and subtracts from each parameter its gradient
    times the learning rate of the step.

    Args:
        model: (B, T) ids -> (B, T, V) logits
        batches: inputs and targets, (B, T) each
        lr: the highest learning rate
        warmup_steps: length of the warmup
        max_norm: largest norm of all gradients together

    Returns:
        the loss of each batch before its step: the mean cross-entropy over all B T targets, in nats
    """
    raise NotImplementedError
