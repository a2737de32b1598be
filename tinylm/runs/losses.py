"""Comparison of the losses that two runs have logged, to the last digit."""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LossComparison:
    """The agreement of two runs.

    Attributes:
        rows: losses of the first run
        equal: how many of them the second run has too
        first: the earliest step at which they differ, with the name of the loss and both values; a missing one is `-`
    """

    rows: int
    equal: int
    first: tuple[int, str, str, str] | None


def compare_losses(run: Path, other: Path) -> LossComparison:
    """Compares `train/loss` and `val/loss` of two metrics.csv, as written. Only steps of the first run count."""
    ours, theirs = logged_losses(run), logged_losses(other)
    different = sorted((step, name) for step, name in ours if ours[step, name] != theirs.get((step, name)))
    first = None
    if different:
        step, name = different[0]
        first = (step, name, ours[step, name], theirs.get((step, name), "-"))
    return LossComparison(len(ours), len(ours) - len(different), first)


def logged_losses(run: Path) -> dict[tuple[int, str], str]:
    """(step, name) -> the loss as written in a run's metrics.csv, including the losses of a mixture's sources."""
    text = (run / "metrics.csv").read_bytes().decode()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    names = ("train/loss", "val/loss")
    return {(int(row["step"]), name): row[name] for row in rows for name in row if name.startswith(names) and row[name]}
