"""Runs trials: one after the other, or several at a time, each in its own process.

Finished trials are recognized by their run folders, unfinished ones resume from their last checkpoint, and a failed one
does not stop the others. The processes are forked from a server that has imported PyTorch and Lightning once, which
saves several seconds per trial; on systems without fork, they start from scratch.

Python programs must call `run_trials` below `if __name__ == "__main__":`, like any code that starts processes.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock

from tinylm.console import duration, plural
from tinylm.errors import CannotCreateError, Interrupted, Preempted, TinyLMError, notice
from tinylm.experiments.results import Result, read_result
from tinylm.experiments.slots import Slot, job_slots
from tinylm.experiments.trials import Trial, check_names, state
from tinylm.files import make_folder
from tinylm.signals import quit_at_next

FORKS = os.name == "posix"
SERVER = "forkserver" if FORKS else "spawn"
PRELOADED = ["tinylm.training.cli", "tinylm.experiments.runner"]
LOCK = ".lock"
OF_A_RUN = ("TINYLM_RUN", "PL_")  # prefixes of a run's variables in this process, which trials do not inherit


@dataclass(frozen=True)
class Outcome:
    """The end of a trial.

    Attributes:
        trial: the trial
        code: exit code of its process; 0 if it had finished before
        problem: the last line of its output, if it failed
    """

    trial: Trial
    code: int
    problem: str = ""


def run_trials(
    trials: Sequence[Trial], folder: Path, jobs: int = 1, report: Callable[[str], None] = notice, alone: bool = True
) -> list[Outcome]:
    """Trains the trials that have not finished, and prints a line for each.

    Args:
        trials: the plan
        folder: folder of the run folders
        jobs: number of concurrent trials; each gets a share of the GPUs, or of the processor's cores
        report: prints a line
        alone: whether to keep other processes from running trials there; every run folder has one writer anyway

    Returns:
        the outcome of every trial, in the order of the plan

    Raises:
        CannotCreateError: if another process runs trials there, or a run folder does not belong to the plan.
        Interrupted: after Ctrl-C, when all processes have saved and ended.
        Preempted: after SIGTERM, in the same way.
    """
    check_names(trials)
    with only_writer(make_folder(folder)) if alone else contextlib.nullcontext():
        states = [state(trial, folder) for trial in trials]  # all of them before the first run
        todo = [trial for trial, each in zip(trials, states, strict=True) if each != "finished"]
        if done := len(trials) - len(todo):
            report(f"{plural(done, 'trial')} of {len(trials)} already finished in {folder}")
        for trial in todo:
            trial.write_overlay(folder)
        pool = _Pool(folder, job_slots(jobs, todo), report, done, len(trials))
        outcomes = {outcome.trial.name: outcome for outcome in pool.run(todo)}
    return [outcomes.get(trial.name, Outcome(trial, 0)) for trial in trials]


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raises an error that names the failed trials, if there are any."""
    failed = [outcome for outcome in outcomes if outcome.code]
    if failed:
        names = "; ".join(f"{each.trial.name} (exit code {each.code}): {each.problem}" for each in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise TinyLMError(f"{len(failed)} of {plural(len(outcomes), 'trial')} failed: {names}{more}; "
                          "the same command tries them again")  # fmt: skip


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder of trials. The operating system releases the lock of a process that dies."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        problem = "another process is running trials here; wait for it, or choose another --out"
        raise CannotCreateError(f"{folder}: {problem}") from None
    except NotImplementedError:
        notice(f"{folder}: this file system has no locks; make sure that no other process runs trials here")
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


class _Pool:
    """The processes of the trials that are running."""

    def __init__(
        self, folder: Path, slots: Sequence[Slot], report: Callable[[str], None], done: int, total: int
    ) -> None:
        self.folder, self.free, self.report, self.done, self.total = folder, [*slots], report, done, total
        self.running: dict[BaseProcess, tuple[Trial, Slot, float]] = {}
        self.context: Any = multiprocessing.get_context(SERVER)
        if FORKS:
            self.context.set_forkserver_preload(PRELOADED)

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Runs trials in order, as many at a time as there are slots."""
        waiting, outcomes = [*trials], []
        try:
            while waiting or self.running:
                while waiting and self.free:
                    self._start(waiting.pop(0))
                wait([process.sentinel for process in self.running])
                outcomes += [self._end(each) for each in [*self.running] if each.exitcode is not None]
        except (KeyboardInterrupt, Interrupted, Preempted) as error:
            quit_at_next()
            by_user = not isinstance(error, Preempted)
            self._stop(signal.SIGINT if by_user else signal.SIGTERM)
            kind = Interrupted if by_user else Preempted
            left = f"{self.done} of {plural(self.total, 'trial')} finished"
            raise kind(f"stopped; {left}; the same command continues") from error
        return outcomes

    def _start(self, trial: Trial) -> None:
        log, slot = trial.log(self.folder), self.free.pop(0)
        for place in (log.parent, self.folder / trial.name):  # --resume wants a folder
            make_folder(place)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_RUN)}
        arguments = (trial.arguments(self.folder), str(log), ours | slot.environment, slot.threads)
        process = self.context.Process(target=_train, args=arguments, name=trial.name)
        self.running[process] = trial, slot, time.monotonic()
        process.start()

    def _end(self, process: BaseProcess) -> Outcome:
        """Removes a process that has ended from the pool, and reports its trial."""
        trial, slot, began = self.running.pop(process)
        process.join()
        self.free.append(slot)
        code = process.exitcode or 0
        took = duration(time.monotonic() - began)
        self.done += code == 0
        if code == 0:
            self.report(f"{self.done} of {self.total}: {trial.name}: {_figures(self.folder / trial.name)}{took}")
            return Outcome(trial, 0)
        problem = last_line(trial.log(self.folder)) if code > 0 else f"killed by {signal.Signals(-code).name}"
        self.report(f"{trial.name} failed after {took} (exit code {code}; {trial.log(self.folder)}): {problem}")
        return Outcome(trial, code, problem)

    def _stop(self, number: int) -> None:
        """Asks all processes to save and end, and waits for them."""
        if self.running:
            self.report(f"stopping {', '.join(trial.name for trial, *_ in self.running.values())}")
        for process in self.running:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)
        for process in [*self.running]:
            if process.pid is not None:
                process.join()


def _figures(run: Path) -> str:
    """`validation loss 0.8960, 800 steps, ` of a finished run."""
    try:
        result: Result = read_result(run)
    except TinyLMError as error:
        return f"{error}; "
    loss = "" if result.row.val_loss is None else f"validation loss {result.row.val_loss:.4f}, "
    return f"{loss}{plural(int(result.row.steps), 'step')}, "


def last_line(log: Path) -> str:
    """The last line of a log: tinylm's error, if there is one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("tinylm: ").removeprefix("error: ") if lines else "no output"


# --- in the process of a trial


def _train(arguments: list[str], log: str, environment: dict[str, str], threads: int | None) -> None:
    """Runs `tinylm ARGUMENTS` in this process, with its output in a file, and ends the process."""
    if FORKS:
        os.setsid()  # Ctrl-C in the terminal is for the parent, which passes it on once
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # for data loaders: the default method
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = ["tinylm", *arguments]
    sys.modules["__main__"].__spec__ = find_spec("tinylm.__main__")  # Lightning starts further ranks by it

    import torch

    from tinylm.training.cli import main

    if threads is not None:
        torch.set_num_threads(threads)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _end_with_parent() -> None:
    """Stops this process like SIGTERM, after a checkpoint, if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
