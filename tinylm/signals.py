"""Signals of a program: in every phase, one line and an exit code.

SIGINT comes from the user and ends with exit code 130; SIGTERM and SIGUSR1 (SLURM's, before the time limit) come from
the system and end with 75. The first signal raises an exception, so that temporary files are removed; a second one ends
the process at once. While steps are taken, `training/stop.py` finishes the step instead.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType

from tinylm.errors import Interrupted, Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class _Raise:
    """The handler that raises."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        quit_at_next()
        raise stopped_by(number, f"stopped by {signal.Signals(number).name}")


@contextlib.contextmanager
def raised(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Inside, the first of these signals raises Interrupted or Preempted. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, _Raise()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def quit_at_next() -> None:
    """Makes any further signal end the process at once."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def stopped_by(number: int, message: str) -> Interrupted | Preempted:
    """The exception with the exit code of a signal."""
    return (Interrupted if number == signal.SIGINT else Preempted)(message)


def _leave_to_the_parent() -> None:
    """In a forked child, such as a loader of batches, Ctrl-C is the parent's affair, and other signals end it."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _Raise):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
