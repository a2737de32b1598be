"""Remarks on a run: at its start, and once its model overfits."""

from typing import Any

from tinylm.data.mixture_content import MixtureContent
from tinylm.data.run_data import RunData
from tinylm.data.shard_order import ShardOrder
from tinylm.errors import notice
from tinylm.optim.schedule import ScheduleConfig

RISES = 3  # validations in a row whose loss rises


def epochs(data: RunData) -> str:
    """The passes over the training data, such as `3.1 epochs`; of a mixture, those of each source with its share.

    Those of a stream are not known.
    """
    if isinstance(data.order, ShardOrder):
        return "order: by shard"
    if not data.content.num_sequences:
        return "epochs of unknown length"
    if not isinstance(data.content, MixtureContent):
        return _epochs(int(data.batch_sizes.total(data.total_steps)) / data.content.num_sequences)
    counts, weights = data.content.order.epochs(data.total_steps), data.content.weights
    return ", ".join(f"{name} {weights[name]:.1%}: {_epochs(count)}" for name, count in counts.items())


def _epochs(count: float) -> str:
    return f"{count:,.1f} epochs" if count >= 0.1 else f"{count:.1g} epochs"


def check_warmup(data: RunData, schedule: Any, lr: float) -> None:
    """Remarks on a warm-up as long as the run, in tinylm's own schedule."""
    if isinstance(schedule, ScheduleConfig) and schedule.warmup_steps >= data.total_steps > 0:
        notice(
            f"model.schedule.warmup_steps is {schedule.warmup_steps:,} and the run has {data.total_steps:,} steps: "
            f"the learning rate never reaches {lr:g}"
        )


class OverfittingWatch:
    """Remarks once that the validation loss rises while the training loss falls."""

    def __init__(self) -> None:
        self.losses: list[tuple[float, float]] = []
        self.told = False

    def add(self, validation: float, training: float) -> None:
        """Takes the two losses at a validation."""
        self.losses = [*self.losses, (validation, training)][-RISES - 1 :]
        rises = all(now[0] > before[0] for before, now in zip(self.losses, self.losses[1:], strict=False))
        if len(self.losses) > RISES and rises and training < self.losses[0][1] and not self.told:
            self.told = True
            notice(
                f"the validation loss has risen for {RISES} validations while the training loss falls: the model "
                "memorizes the text; the best model is kept, and -c early_stopping would end the run"
            )
