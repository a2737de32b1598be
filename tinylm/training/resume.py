"""Resuming a run as if it had never stopped: the checkpoint to take, and what Lightning's checkpoints leave out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from tinylm.bundle import read_checkpoint
from tinylm.errors import DataError, notice
from tinylm.locate import MANIFEST


@dataclass(frozen=True)
class ResumePoint:
    """The state from which a run is resumed.

    Attributes:
        path: the newest undamaged checkpoint; None if the run was killed before its first one
        step: its optimizer step
        validating: whether it was saved before a validation, which is then repeated
        damaged: checkpoints of the run that cannot be read
    """

    path: Path | None = None
    step: int = 0
    validating: bool = False
    damaged: tuple[Path, ...] = ()


def find_resume_point(run_folder: Path) -> ResumePoint:
    """The newest undamaged one of `last.ckpt` and `best.ckpt`.

    Raises:
        DataError: if all are damaged, or if the run has a model but no checkpoint.
    """
    found: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, str] = {}
    for name in ("last.ckpt", "best.ckpt"):
        path = (run_folder / "checkpoints" / name).resolve()
        if path.is_file():
            try:
                found[path] = read_checkpoint(path, lambda *_: None)
            except DataError as error:
                problems[path] = str(error)
    if not found and problems:
        raise DataError("; ".join(problems.values()))
    if not found and (run_folder / "model" / MANIFEST).is_file():
        raise DataError(f"{run_folder}: has a model but no checkpoint to resume from; choose another run.name")
    if not found:
        return ResumePoint()
    path = max(found, key=lambda each: found[each]["global_step"])
    step = found[path]["global_step"]
    for problem in problems.values():
        notice(f"warning: {problem}; resuming from {path.name} (step {step:,})")
    state = found[path].get("callbacks", {}).get("ExactResume", {})
    return ResumePoint(path, step, bool(state.get("validating")), tuple(problems))


class ExactResume(Callback):
    """Saves the state that Lightning's checkpoints lack for an exact resume, and validates the end of a run.

    A run that is stopped in a validation repeats it on resume, and one that was stopped early stays so. The
    `ModelCheckpoint`s of a run whose folder was moved, or is named by another path, go on with their files. With
    Lightning's `EMAWeightAveraging` every checkpoint, the last one too, holds the average and the weights to train on.

    Args:
        damaged: checkpoints of the run that cannot be read; what is known of them is forgotten
    """

    def __init__(self, damaged: Sequence[Path] = ()) -> None:
        self.damaged = damaged
        self._validating = False
        self._validated = -1  # step of the last complete validation
        self._patience: dict[EarlyStopping, int] = {}
        self._limits: tuple[Any, Any] | None = None
        self._reached = 0, 0  # steps and epochs of the checkpoint
        self._averages: list[tuple[Any, Any]] = []  # and what they do at the end of training

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation was running, and the step of the last complete one."""
        return {"validating": self._validating, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._validating, self._validated = state_dict["validating"], state_dict["validated"]

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adapts the states of checkpoint callbacks to the run's folder, which may be another than it was."""
        self._reached = checkpoint["global_step"], checkpoint["epoch"] + 1
        states = checkpoint.get("callbacks", {})
        for callback in (each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)):
            state = states.get(callback.state_key)
            moved = None if state is None or not pl_module.resumes else moved_state(state, callback.dirpath)
            if moved is None or any(str(path) == moved["best_model_path"] for path in self.damaged):
                states.pop(callback.state_key, None)
            else:
                states[callback.state_key] = moved
        self._patience = {each: each.patience for each in trainer.early_stopping_callbacks}
        for callback in self._patience if not pl_module.resumes else ():  # a new run has its own patience
            states.pop(callback.state_key, None)
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint and not averaging_callbacks(trainer):
            notice(
                "the run continues from averaged weights, but unlike the checkpoint it has no callback that averages"
            )
        if trainer.state.fn == "fit" and trainer.strategy.restore_checkpoint_after_setup:  # and after on_fit_start
            self._open_loop(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lets a resumed run enter the training loop, which Lightning skips where no step is left.

        Also skips Lightning's first validation, which would reset the restored counters.
        """
        self._averages = [(each, each.on_train_end) for each in averaging_callbacks(trainer)]
        for callback, _ in self._averages:  # it would leave the last checkpoint without the weights to train on
            callback.on_train_end = lambda *_: None
        if trainer.ckpt_path is not None:
            self._open_loop(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lets the callbacks of averaging put their weights into the model, after the last checkpoint."""
        for callback, end in self._averages:
            end(trainer, pl_module)
            callback.on_train_end = end

    def _open_loop(self, trainer: pl.Trainer) -> None:
        loop = trainer.fit_loop
        trainer.num_sanity_val_steps = 0
        self._limits = steps, epochs = loop.epoch_loop.max_steps, loop.max_epochs
        done, entered = self._reached  # which the limits of today may be below
        loop.epoch_loop.max_steps = max(steps, done) + 1 if steps >= 0 else steps
        loop.max_epochs = max(epochs, entered) + 1 if epochs is not None and epochs >= 0 else epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Repeats a validation in which the run was stopped, and ends a run that was stopped early."""
        loop = trainer.fit_loop
        if self._limits is not None:
            loop.epoch_loop.max_steps, loop.max_epochs = self._limits
        if self._validating:
            run_validation(trainer)
            loop.epoch_loop.val_loop._has_run = False  # so that Lightning completes the step that it restarts at
        epochs: Any = loop.epoch_progress.current
        if loop.done and epochs.ready > epochs.processed:
            loop.epoch_progress.increment_processed()  # it enters no epoch
            loop.epoch_progress.increment_completed()
            loop.epoch_loop._batches_that_stepped += 1
            if loop.epoch_loop.restarted_on_train_batch_end:
                loop.epoch_loop.batch_progress.increment_completed()
        for callback, patience in self._patience.items():
            callback.patience = patience  # the config's, which may be longer than before
            stopped = callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED
            longer = callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
            if stopped and not (longer and callback.wait_count < patience):
                notice(f"the run was stopped early ({callback.stopping_reason_message}); nothing is left to train")
                trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Marks the checkpoints of this step as incomplete."""
        self._validating = not trainer.sanity_checking

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Marks the validation as complete."""
        if not trainer.sanity_checking:
            self._validating, self._validated = False, trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validates the last step if that has not been done."""
        if self._validated != trainer.global_step and trainer.enable_validation:
            run_validation(trainer)


def averaging_callbacks(trainer: pl.Trainer) -> list[Any]:
    """The callbacks that train one set of weights and save the average of many."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [each for each in callbacks if isinstance(each, WeightAveraging)]


def run_validation(trainer: pl.Trainer) -> None:
    """Runs a validation between two steps as Lightning's training loop does."""
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    connector: Any = trainer._logger_connector
    first = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def moved_state(state: dict[str, Any], folder: str | Path | None) -> dict[str, Any] | None:
    """The state of a ModelCheckpoint with its files in `folder`; None if the best one is not there."""

    def moved(path: str) -> str:
        return str(Path(str(folder), os.path.relpath(path, state["dirpath"]))) if path else ""

    paths = {name: moved(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    if paths["best_model_path"] and not Path(paths["best_model_path"]).is_file():
        return None
    best = {moved(path): value for path, value in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": best, "dirpath": folder}
