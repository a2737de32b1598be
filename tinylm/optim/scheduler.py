"""The schedule of an optimizer as a PyTorch scheduler, which advances with every optimizer step."""

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tinylm.checks import require
from tinylm.errors import NumericError
from tinylm.optim.optimizer import base_rate
from tinylm.optim.schedule import ScheduleConfig, learning_rate
from tinylm.plugins import Part

FIELD = "model.schedule"


class Schedule(Protocol):
    """A user's own schedule: a function, or an instance of a class that the config names with its `init_args`.

    A class of `torch.optim.lr_scheduler` that takes the optimizer first also works, and advances with every optimizer
    step.
    """

    def __call__(self, step: int, total_steps: int) -> float:
        """Computes the learning rate of a step as a factor of the optimizer's `lr`.

        Args:
            step: optimizer steps done before this one
            total_steps: optimizer steps of the run
        """
        ...


class Rates(LambdaLR):
    """PyTorch's LambdaLR with one factor for all groups, also for those that a callback adds to the optimizer later.

    The rate with which a group is added follows the schedule from there on.
    """

    def factor(self, step: int | None = None) -> float:
        """The factor of all rates at a step. Default: the present one."""
        return self.lr_lambdas[0](self.last_epoch if step is None else step)

    def get_lr(self) -> list[Any]:
        """The learning rate of each group at this step."""
        before, now = self.factor(max(self.last_epoch - 1, 0)), self.factor()
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"] / before if before else group["lr"])
        return [group["initial_lr"] * now for group in self.optimizer.param_groups]


def make_scheduler(optimizer: Optimizer, config: ScheduleConfig | Part, total_steps: Callable[[], int]) -> LRScheduler:
    """The scheduler of a run.

    Args:
        optimizer: with its `lr`
        config: the schedule, or a class or function of the user's choice
        total_steps: gives the optimizer steps of the run, as planned at the time

    Raises:
        ConfigError: if a class or function cannot be used.
    """
    if isinstance(config, Part) and is_scheduler(config):
        require(config.load() is not ReduceLROnPlateau, f"{FIELD}: {config}: waits for a metric; use another")
        scaled = any("lr_factor" in group for group in optimizer.param_groups)
        require(not scaled, f"{FIELD}: {config}: sets rates that mup_base_width scales; use a function")
        return config.make(optimizer, field=FIELD)
    lr = base_rate(optimizer)
    if isinstance(config, Part):
        return Rates(optimizer, _checked(config.make_function("step", "total_steps", field=FIELD), config, total_steps))
    require(config.min_lr <= lr, f"min_lr must not exceed lr, got min_lr={config.min_lr} and lr={lr}")
    return Rates(optimizer, lambda step: learning_rate(step, total_steps(), lr, config) / lr)


def is_scheduler(part: Part) -> bool:
    """Whether a plug-in is a scheduler of PyTorch's kind, which keeps a state."""
    found = part.load()
    return isinstance(found, type) and issubclass(found, LRScheduler)


def _checked(function: Callable[[int, int], Any], part: Part, total_steps: Callable[[], int]) -> Callable[[int], float]:
    def factor(step: int) -> float:
        found = function(step, total_steps())
        if not isinstance(found, int | float) or not 0 <= found < math.inf:
            raise NumericError(f"{FIELD}: {part}: must give a factor from 0 up, got {found} for step {step}")
        return float(found)

    return factor
