"""Progress of work on large data: the amount done of the total, the rate, and the time left.

On a terminal it is a bar, which appears after two seconds and is erased at the end. Elsewhere, as in the log of a
cluster, it is a line every half minute, so that work of less than half a minute leaves no trace.
"""

import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from tinylm.errors import notice, notices_silenced

DELAY = 2.0  # seconds before a bar appears
EVERY = 30.0  # seconds between two lines where there is no terminal
LONGEST = 28  # characters of a description
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


class ProgressBar:
    """Shows the progress of one piece of work. The clock starts with the first `update`.

    Args:
        description: the work, such as `encoding my.txt`
        total: amount in all; None if unknown
        unit: `B` for bytes, or the plural of the counted items, such as `merges`

    Attributes:
        done: the amount of finished work
        total: the total amount; it may be set until the first `update`
    """

    def __init__(self, description: str, total: int | None = None, unit: str = "B") -> None:
        cut = len(description) - LONGEST
        self._description = description if cut <= 0 else f"...{description[cut + 3 :]}"
        self.total, self._unit = total, unit
        self._shown: _Bar | _Lines | None = None
        self.done = 0

    def update(self, amount: int) -> None:
        """Adds an amount of finished work. Amounts beyond the total, as with a growing file, do not count."""
        if self.total is not None:
            amount = min(amount, self.total - self.done)
        self.done += amount
        if self._shown is None:
            kind = _Bar if sys.stderr.isatty() and not notices_silenced() else _Lines
            self._shown = kind(self._description, self.total or None, self._unit, self.done)
        else:
            self._shown.update(amount)

    def to(self, done: int) -> None:
        """Sets the amount of work that is finished."""
        self.update(done - self.done)

    def close(self) -> None:
        """Erases the bar."""
        if self._shown is not None:
            self._shown.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def learning(counting: ProgressBar, pieces: int, follow: bool = False) -> Iterator[Callable[[str, int], None]]:
    """The `progress` option of a tokenizer's training: shows the learning of pieces after the counting of words.

    Args:
        counting: shows the bytes whose words are counted; closed when pieces are learned
        pieces: number of pieces to learn, by merging smaller ones or by pruning many
        follow: whether the training updates `counting`, rather than the reader of the text
    """
    first = pieces  # before pruning
    with ProgressBar("merging", pieces, "merges") as merging, ProgressBar("pruning", None, "pieces") as pruning:

        def progress(stage: str, done: int) -> None:
            nonlocal first
            if stage == "counting":
                if follow:
                    counting.to(done)
                return
            counting.close()
            if stage == "merging":
                merging.to(done)
                return
            if pruning.total is None:
                first, pruning.total = done, max(done - pieces, 0)
            pruning.to(first - done)

        yield progress


class _Bar(tqdm):
    """A bar on a terminal."""

    def __init__(self, description: str, total: int | None, unit: str, initial: int) -> None:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {state}" if total else "{desc}: {state}"
        super().__init__(
            desc=description, total=total, unit=unit, initial=initial, bar_format=layout,
            delay=DELAY, leave=False, dynamic_ncols=True,
        )  # fmt: skip

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """The values that `bar_format` may name."""
        found = super().format_dict
        average = (found["n"] - found["initial"]) / max(found["elapsed"], 1e-9)
        found["state"] = show_state(found["n"], found["total"], found["unit"], found["rate"] or average)
        return found


class _Lines:
    """A line every `EVERY` seconds."""

    def __init__(self, description: str, total: int | None, unit: str, initial: int) -> None:
        self._description, self._total, self._unit, self._done = description, total, unit, initial
        self._last = time.monotonic(), initial  # of the last line

    def update(self, amount: int) -> None:
        """Prints a line if it is time."""
        self._done += amount
        now, (before, done) = time.monotonic(), self._last
        if now - before >= EVERY:
            state = show_state(self._done, self._total, self._unit, (self._done - done) / (now - before))
            share = f"{self._done / self._total:.0%}, " if self._total else ""
            notice(f"{self._description}: {share}{state}")
            self._last = now, self._done

    def close(self) -> None:
        """Does nothing: lines stay."""


def show_state(done: float, total: float | None, unit: str, rate: float) -> str:
    """The amount, the rate and the time left.

    >>> show_state(120e6, 250e6, "B", 32.5e6)
    '120 of 250 MB, 32.5 MB/s, 00:04 left'
    >>> show_state(900, 1791, "merges", 60)
    '900 of 1,791 merges, 60 merges/s, 00:14 left'
    """
    amounts = [done] if total is None else [done, total]
    if unit == "B":
        size, unit = next((each for each in SIZES if amounts[-1] >= each[0]), SIZES[-1])
        digits, speed = 1 if size >= 1e9 else 0, f"{rate / 1e6:,.1f} MB/s"
    else:
        size, digits, speed = 1, 0, f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"
    shown = " of ".join(f"{amount / size:,.{digits}f}" for amount in amounts)
    left = "" if total is None or rate <= 0 else f", {tqdm.format_interval((total - done) / rate)} left"
    return f"{shown} {unit}, {speed}{left}"
