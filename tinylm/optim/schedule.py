"""The learning rate schedule: linear warmup, then one of four shapes down to `min_lr`."""

import math
from dataclasses import dataclass
from typing import Literal

from tinylm.checks import check_types, require


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate schedule."""

    name: Literal["cosine", "linear", "trapezoid", "constant"] = "cosine"
    """Shape after warmup: cosine, linear, trapezoid (constant, then linear) or constant."""
    warmup_steps: int = 100
    """Steps of linear increase from 0 to lr."""
    min_lr: float = 0.0
    """Learning rate at the end of the run."""
    decay_steps: int | None = None
    """trapezoid: steps of the decrease. Default: a fifth."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.warmup_steps >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}")
        require(self.min_lr >= 0, f"min_lr must not be negative, got {self.min_lr}")
        require((self.decay_steps or 0) >= 0, f"decay_steps must not be negative, got {self.decay_steps}")


def learning_rate(step: int, total_steps: int, lr: float, config: ScheduleConfig) -> float:
    """The learning rate of a step.

    Args:
        step: optimizer steps done before this one
        total_steps: optimizer steps of the run
        lr: learning rate after warmup
        config: the schedule

    Returns:
        the rate, between min_lr and lr, but below min_lr during warmup
    """
    if step < config.warmup_steps:
        return lr * (step + 1) / (config.warmup_steps + 1)
    remaining = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / remaining)
    match config.name:
        case "cosine":
            height = (1 + math.cos(math.pi * done)) / 2
        case "linear":
            height = 1 - done
        case "trapezoid":
            decay = config.decay_steps if config.decay_steps is not None else max(1, total_steps // 5)
            height = min(1.0, (total_steps - step) / max(1, decay))
        case "constant":
            height = 1.0
    return config.min_lr + (lr - config.min_lr) * max(0.0, height)
