"""A metric of many runs against one or two of their settings, such as the lowest validation loss against `lr`."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError, DataError, did_you_mean
from tinylm.runs.compare import read_run, reading
from tinylm.runs.groups import all_settings, distinct, group_runs, natural, stem, why_alone
from tinylm.runs.metrics import read_metrics
from tinylm.runs.settings import FREE, PARENT, USUAL, Settings, differences, inside, key, labels, shown, words

FALLING = ("loss", "perplexity", "bpb", "excess")
"""Metrics whose lower values are better, by the beginning of the last part of their names."""
TAKE = {"lowest": min, "highest": max, "last": lambda values: values[-1]}


@dataclass(frozen=True)
class Point:
    """The metric of the runs of equal settings.

    Attributes:
        at: the values of the settings on the axes
        mean: mean over the runs
        deviation: sample standard deviation; None for one run
        runs: number of runs
    """

    at: tuple[Any, ...]
    mean: float
    deviation: float | None
    runs: int


@dataclass(frozen=True)
class Line:
    """Points of runs that differ only in the settings on the axes; the label distinguishes them from other lines."""

    label: str
    points: list[Point]


@dataclass(frozen=True)
class Sweep:
    """A metric against settings.

    Attributes:
        names: the settings on the axes, in words
        metric: the metric, and which of its values in a run is used
        lines: one for each difference that is not on an axis
        left_out: the runs without a point, with the reasons
    """

    names: tuple[str, ...]
    metric: str
    lines: list[Line]
    left_out: list[str]


def take_of(metric: str) -> str:
    """The value of a run to take: the lowest of losses, the highest of an accuracy, else the last."""
    last = metric.rpartition("/")[2]
    return "lowest" if last.startswith(FALLING) else "highest" if last.startswith("accuracy") else "last"


def read_sweep(
    folders: Sequence[Path], entries: Sequence[str], metric: str, take: str | None = None, *, join: bool = True
) -> Sweep:
    """Reads a metric of runs against settings.

    Args:
        folders: run folders
        entries: one or two config entries by dotted name, its end, or the word of a legend: `model.optimizer.lr`, `lr`
        metric: a column of metrics.csv
        take: one of `TAKE`. Default: that of `take_of`
        join: whether runs with equal relevant settings form one point

    Raises:
        ConfigError: if there is no such entry, or all runs have the same value.
        DataError: if no run has the metric, or a run's files are damaged.
    """
    keep = [find_entry(entry, all_settings(folders, FREE)) for entry in entries]
    take = take or take_of(metric)
    values, left_out = _values(folders, metric, take)
    folders = [folder for folder in folders if folder in values]
    runs = all_settings(folders, keep)
    _check_differences(keep, runs)
    groups, _ = group_runs(folders, [read_run(folder) for folder in folders], join=join, keep=keep)
    lines: dict[str, list[int]] = {}
    points: dict[int, Point] = {}
    rest = [{name: run[name] for name in run if not any(inside(name, entry) for entry in keep)} for run in runs]
    for group in groups:
        first, found = group.members[0], [values[folders[index]] for index in group.members]
        deviation = statistics.stdev(found) if len(found) > 1 else None
        at = tuple(runs[first].get(entry) for entry in keep)
        points[first] = Point(at, statistics.fmean(found), deviation, len(found))
        lines.setdefault(key(rest[first]), []).append(first)
    stems = [stem([folders[index].name for index in members]) for members in lines.values()]
    names = distinct(labels([rest[members[0]] for members in lines.values()]), stems, [True] * len(lines))
    found = [
        Line(name if len(lines) > 1 else "", [points[first] for first in members])
        for name, members in zip(names, lines.values(), strict=True)
    ]
    found.sort(key=lambda line: natural(line.label))
    return Sweep(tuple(words(entry, keep) for entry in keep), f"{take} {metric}", found, left_out)


def _check_differences(entries: Sequence[str], runs: Sequence[Settings]) -> None:
    """Refuses an entry in which the runs do not differ."""
    for entry in entries:
        if len({key({"": run.get(entry)}) for run in runs}) == 1:
            others = (
                ", ".join(name for name in differences(runs) if name not in entries)
                or "nothing that affects the result"
            )
            value = shown(runs[0].get(entry))
            raise ConfigError(f"--x {entry}: all {len(runs)} runs have {value}; they differ in {others}")


def _values(folders: Iterable[Path], metric: str, take: str) -> tuple[dict[Path, float], list[str]]:
    """The metric of each finished run that has it, and remarks on the others."""
    values, left_out, columns = {}, [], set()
    for folder in folders:
        with reading(folder):
            row, path = read_run(folder), folder / "metrics.csv"
            measured = read_metrics(path) if path.is_file() else {}
        columns |= measured.keys()
        if reason := why_alone(row, others_validated=False):
            left_out.append(f"{folder}: {reason}; left out")
        elif metric not in measured:
            left_out.append(f"{folder}: has no {metric}; left out")
        else:
            values[folder] = TAKE[take](measured[metric][1])
    if not values:
        hint = did_you_mean(metric, columns) or f"; they have {', '.join(sorted(columns)) or 'no metrics'}"
        raise DataError(f"--y {metric}: no finished run has this metric{hint if metric not in columns else ''}")
    return values, left_out


def find_entry(entry: str, runs: Sequence[Settings]) -> str:
    """The full name of a config entry, given in full, by its end, or by its word in a legend.

    >>> find_entry("lr", [{"model.optimizer.lr": 0.1, "model.schedule.min_lr": 0.0}])
    'model.optimizer.lr'
    """
    known = list(dict.fromkeys(name for run in runs for name in run))
    usual = [name for name in USUAL if USUAL[name] == entry and name in known]
    ends = usual[:1] or [name for name in known if name.endswith(f".{entry}")]
    ends = [entry] if entry in known else [name for name in ends if not inside(name, PARENT)] or ends
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"--x {entry}: several entries end like this: {', '.join(ends)}; give one in full")
    hint = did_you_mean(entry, known) or f"; the runs differ in {', '.join(differences(runs)) or 'nothing'}"
    raise ConfigError(f"--x {entry}: no run has this entry in its config{hint}")
