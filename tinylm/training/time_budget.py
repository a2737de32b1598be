"""TimeBudget: as many steps as fit into `run.seconds`, by the speed of the run itself."""

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinylm.checks import require
from tinylm.console import duration, seconds_since_start
from tinylm.data.run_data import data_of
from tinylm.errors import notice
from tinylm.optim.scheduler import is_scheduler
from tinylm.plugins import Part
from tinylm.training.checkpoint import finished_step

ENDING = 2.0  # seconds after the last validation, for the model folder and the curves
FORWARD = 0.4  # time of a validation token, as a multiple of that of a training token
CHECKS = 50  # in a run
WINDOW = 10  # checks over which the speed is measured
REMARK = 0.05  # change of the number of steps that is announced


class TimeBudget(Callback):
    """Ends a run in `run.seconds` from the start of its command, all its starts together.

    `trainer.max_steps` is the first guess. From then on the number of steps follows the speed of the last fifth of the
    run, and the learning rate follows the number of steps: it decreases sooner on a machine that has become slower.
    Validations, samples and checkpoints count too. All ranks use the clock of rank 0.

    Such a run is not repeatable to the last bit, since no two have the same speed. A resumed one keeps its number of
    steps and the seconds it has used.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._earlier = 0.0  # seconds of the earlier starts of the run
        self._beside = 0.0  # seconds of the validations in this start
        self._validation: float | None = None  # seconds of the last validation, its checkpoint and its samples
        self._left_at: float | None = None  # when the validation began that has not yet been left
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # steps, and seconds of training until then
        self._steps = self._announced = 0  # of the whole run

    @property
    def used(self) -> float:
        """Seconds used so far."""
        return self._earlier + seconds_since_start()

    def state_dict(self) -> dict[str, Any]:
        """The budget, the seconds used, and the number of steps."""
        return {"budget": self.seconds, "used": self.used, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adds the seconds of the earlier starts."""
        self._earlier = state_dict["used"]

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Gives a new run, which only begins from the checkpoint, its own time."""
        if not pl_module.resumes:
            checkpoint["callbacks"].pop(self.state_key, None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins with the steps that are planned."""
        self._steps = self._announced = data_of(trainer).total_steps

    # --- the clock

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stops the clock of training."""
        self._left_at = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts it again."""
        if self._left_at is not None and self._marks:
            self._validation = time.perf_counter() - self._left_at
            self._beside += self._validation
        self._left_at = None

    # --- the steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Adjusts the number of steps, every fiftieth of the run and a few times in the beginning."""
        step = trainer.global_step
        begins = step & (step - 1) == 0 or not self._marks  # the first is slow, and compiles
        due = step % max(1, self._steps // CHECKS) == 0
        if not finished_step(trainer, batch_idx) or not (begins or due):
            return
        now = seconds_since_start() - self._beside
        if self._marks:
            pace = (now - self._marks[0][1]) / (step - self._marks[0][0])
            self._steps = trainer.strategy.broadcast(self._fitting(trainer, step, pace))
            set_steps(trainer, self._steps)
            if due:
                self._announce()
        self._marks.append((step, now))

    def _fitting(self, trainer: pl.Trainer, step: int, pace: float) -> int:
        """Steps of a run that will end in time.

        Args:
            trainer: the Trainer
            step: steps that have been done
            pace: seconds of a step
        """
        data = data_of(trainer)
        guess = FORWARD * pace * data.tokens_of_validation / max(data.batch_size * data.content.sequence_length, 1)
        beside = _validations(trainer, step, self._steps) * (guess if self._validation is None else self._validation)
        left = self.seconds - self.used - beside - ENDING
        return step + max(0, int(left / pace))

    def _announce(self) -> None:
        """Says how many steps fit, when that has changed much."""
        if abs(self._steps / self._announced - 1) > REMARK:
            notice(f"{self._steps:,} steps fit into {duration(self.seconds)}, not {self._announced:,}, at this speed")
            self._announced = self._steps


def _validations(trainer: pl.Trainer, step: int, total: int) -> int:
    """Validations from a step on, the last one included."""
    data = data_of(trainer)
    if not data.validates:
        return 0
    every = max(data.steps_between_validations, 1)
    return max(-(-total // every) - (step - 1) // every, 1)


def set_steps(trainer: pl.Trainer, steps: int) -> None:
    """Changes the number of steps of a run, between two of them; its schedule follows."""
    data_of(trainer).total_steps = trainer.fit_loop.epoch_loop.max_steps = steps


def restore_steps(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Gives a resumed run the number of steps that it had, or as many more as `run.seconds` has grown since."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, TimeBudget) and state is not None and state["steps"]:
            set_steps(trainer, round(state["steps"] * callback.seconds / state["budget"]))


def check_time_budget(seconds: float | None, trainer: Any, schedule: Any) -> None:
    """Refuses `run.seconds` where the number of steps cannot be changed.

    Args:
        seconds: `run.seconds`
        trainer: the config of the Trainer
        schedule: the config of the schedule

    Raises:
        ConfigError: naming the option.
    """
    if seconds is None:
        return
    counts = trainer.max_steps >= 0 and trainer.max_epochs in (None, -1)
    require(counts, "run.seconds: needs trainer.max_steps, the first guess, and no trainer.max_epochs")
    own = isinstance(schedule, Part) and is_scheduler(schedule)
    require(not own, f"run.seconds: model.schedule {schedule} has a length of its own; use a function")
