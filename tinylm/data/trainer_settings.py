"""The settings of the trainer that follow from the data: its intervals, its validations, the length of the run.

Lightning counts micro-batches, and tinylm optimizer steps: intervals are converted once.
"""

from typing import Any

from tinylm.errors import ConfigError

NO_END = (
    "trainer.max_steps: missing; set it or trainer.max_epochs: the schedule needs the length of the run "
    "(run.seconds adjusts max_steps to a time)"
)
ENDLESS = 1 << 40  # steps


class TrainerSettings:
    """Changes the settings of a trainer, once per trainer."""

    def __init__(self) -> None:
        self._converted: Any = None  # the trainer whose intervals are in micro-batches
        self._set_aside: dict[str, Any] = {}  # the settings of validations while they are switched off

    def is_new(self, trainer: Any) -> bool:
        """Whether the intervals of this trainer still count optimizer steps."""
        return self._converted is not trainer

    def without_validation(self, trainer: Any) -> None:
        """Switches validations off, until `restore`."""
        for name, value in (("limit_val_batches", 0), ("val_check_interval", 1.0)):
            if hasattr(trainer, name):
                self._set_aside.setdefault(name, getattr(trainer, name))
            setattr(trainer, name, value)

    def restore(self, trainer: Any) -> None:
        """Gives the trainer its validations back, for other data."""
        for name, value in self._set_aside.items():
            setattr(trainer, name, value)
        self._set_aside = {}

    def convert(self, trainer: Any, steps: int, accumulate: int) -> None:
        """Sets accumulation, and makes every interval a whole number of optimizer steps.

        Args:
            trainer: changed in place
            steps: optimizer steps in an epoch of the data
            accumulate: micro-batches of a device in an optimizer step

        Raises:
            ConfigError: for a validation that would not be reached within an epoch.
        """
        if getattr(trainer, "overfit_batches", 0):
            raise ConfigError("trainer.overfit_batches: not supported; set data.train_tokens, as overlays/overfit does")
        trainer.accumulate_grad_batches = accumulate
        if not self.is_new(trainer):
            return
        trainer.limit_train_batches = _micro_batches(trainer.limit_train_batches, steps, accumulate)
        interval, epoch = trainer.val_check_interval, steps_per_epoch(trainer, steps)
        whole_run = getattr(trainer, "check_val_every_n_epoch", None) is None
        if isinstance(interval, int) and interval > epoch and not whole_run:
            raise ConfigError(
                f"trainer.val_check_interval must be at most the {epoch} steps of an epoch, got {interval}; "
                "set check_val_every_n_epoch: null to count steps of the whole run"
            )
        trainer.val_check_interval = _micro_batches(interval, steps, accumulate)
        self._converted = trainer


def _micro_batches(interval: Any, steps: int, accumulate: int) -> Any:
    """An interval of the trainer in micro-batches, from one in optimizer steps or a fraction of `steps`."""
    if isinstance(interval, float) and interval != 1.0:
        interval = max(1, int(interval * steps)) if interval else 0
    return interval * accumulate if isinstance(interval, int) else interval  # a time, or None


def steps_per_epoch(trainer: Any, steps: int) -> int:
    """Optimizer steps in an epoch of a converted trainer; `steps` are those in an epoch of the data."""
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    return min(steps, limit // accumulate) if isinstance(limit, int) else steps


def steps_of_run(trainer: Any, epoch: int) -> int:
    """Optimizer steps of the whole run; `epoch` are those of one epoch.

    Lightning's own estimate builds the training loader, which must wait until a checkpoint has been restored.
    """
    epochs = trainer.max_epochs
    ends = [trainer.max_steps, -1 if epochs is None else epochs * epoch]
    if all(end < 0 for end in ends):
        raise ConfigError(NO_END)
    return min(end for end in ends if end >= 0)


def fixed_steps(trainer: Any, option: str) -> int:
    """Optimizer steps of a run whose epochs vary in length because of `option`; without a trainer, it does not end."""
    if trainer is None:
        return ENDLESS
    if trainer.max_steps < 0:
        raise ConfigError(f"trainer.max_steps: missing; with {option} an epoch has no fixed number of steps")
    if trainer.max_epochs not in (None, -1):
        raise ConfigError(f"trainer.max_epochs: does not work with {option}; set trainer.max_steps alone")
    return trainer.max_steps
