"""Signals of a program: in every phase, one line and an exit code.

SIGINT comes from the user and ends with exit code 130; SIGTERM and SIGUSR1 (SLURM's, before the time limit) come from
the system and end with 75. The first signal raises an exception, so that temporary files are removed; a second one ends
the process at once. During training, `training/stop.py` finishes the step instead.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from tinylm.errors import Interrupted, Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


SOON = 0.01  # seconds until a lost signal is sent again


class _Raise:
    """The handler that raises."""

    number: int = signal.SIGINT  # the last signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        quit_at_next()
        raise stopped_by(number, f"stopped by {signal.Signals(number).name}")


@contextlib.contextmanager
def raised(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Makes the first of these signals raise Interrupted or Preempted, in a `with` block of the main thread.

    Python drops an exception that is raised while it destroys an object, such as an unfinished generator. The signal is
    then sent again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, report = _Raise(), sys.unraisablehook
    earlier = {number: signal.signal(number, handler) for number in numbers}

    def dropped(what: Any) -> None:
        if not isinstance(what.exc_value, Interrupted | Preempted):
            report(what)
            return
        for number in earlier:
            signal.signal(number, handler)
        threading.Timer(SOON, _interrupt, (handler.number,)).start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, each in earlier.items():
            signal.signal(number, each)


def _interrupt(number: int) -> None:
    """Sends a signal to the main thread."""
    if hasattr(signal, "pthread_kill"):  # it also interrupts a wait of that thread
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def quit_at_next() -> None:
    """Makes any further signal end the process at once."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def stopped_by(number: int, message: str) -> Interrupted | Preempted:
    """The exception with the exit code of a signal."""
    return (Interrupted if number == signal.SIGINT else Preempted)(message)


def _leave_to_the_parent() -> None:
    """In a forked child, such as a data loader, ignores Ctrl-C, which the parent handles; other signals end it."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _Raise):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
