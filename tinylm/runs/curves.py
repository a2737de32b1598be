"""Curves of run folders against steps, tokens, FLOPs or time; runs with equal relevant settings are averaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.errors import DataError
from tinylm.runs.compare import elapsed_seconds, read_run, reading
from tinylm.runs.groups import group_runs
from tinylm.runs.lineage import flop_counter, read_config, token_counter
from tinylm.runs.metrics import read_metrics
from tinylm.runs.plots import Curves

AXES = {"steps": "step", "tokens": "tokens", "flops": "FLOPs", "time": "training time (s)"}
COUNTERS = {"tokens": token_counter, "flops": flop_counter}
SMOOTHED = ("train/", "perf/")
"""Noisy metrics."""


@dataclass(frozen=True)
class Run:
    """Metrics of a run: steps and values of each, and the x position of a step."""

    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    position: Callable[[np.ndarray], np.ndarray]


def read_curves(
    folders: Sequence[Path], axis: str = "steps", *, join_seeds: bool = True, smooth: float = 0.0
) -> tuple[list[Curves], list[str]]:
    """Reads the curves of runs, labelled by their differences, and remarks on runs that are not averaged.

    Args:
        folders: run folders
        axis: one of `AXES`
        join_seeds: average runs with equal relevant settings
        smooth: exponential smoothing of training metrics, from 0 (none) to below 1

    Raises:
        DataError: if a run has no metrics, or its files are damaged.
    """
    runs = []
    for folder in folders:
        with reading(folder):
            runs.append(_read(folder, axis, smooth))
    groups, remarks = group_runs(folders, [read_run(folder) for folder in folders], join=join_seeds)
    return [mean_of(group.label, [runs[index] for index in group.members]) for group in groups], remarks


def _read(folder: Path, axis: str, smooth: float) -> Run:
    if not (folder / "metrics.csv").is_file():
        raise DataError(f"{folder}: has no metrics.csv; leave it out")
    read = read_metrics(folder / "metrics.csv")
    if not read:
        raise DataError(f"{folder}: metrics.csv has no rows yet; wait for the first, or leave the run out")
    columns = {name: (np.array(steps), np.array(values)) for name, (steps, values) in read.items()}
    for name in [name for name in columns if name.startswith(SMOOTHED)]:
        steps, values = columns[name]
        columns[name] = steps, smoothed(values, smooth, steps)
    return Run(columns, _axis(folder, axis, read))


def _axis(folder: Path, axis: str, columns: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from steps to positions on an axis."""
    if axis == "steps":
        return lambda steps: steps
    if axis in COUNTERS:
        counter = COUNTERS[axis](folder, read_config(folder), columns)
        if counter is None:
            problem = f"its {axis} are unknown, since its config does not give the size of a batch or of the network"
            raise DataError(f"{folder}: {problem}; use --x steps")
        return counter
    if "perf/step_seconds" not in columns:
        raise DataError(
            f"{folder}: metrics.csv has no perf/step_seconds, so its training time is unknown; use --x tokens"
        )
    rows, seconds = columns["perf/step_seconds"]
    elapsed = elapsed_seconds(rows, seconds)
    return lambda steps: np.interp(steps, [0, *rows], [0, *elapsed])


def mean_of(label: str, runs: Sequence[Run]) -> Curves:
    """Mean and sample standard deviation of runs, at the steps that all of them have."""
    columns, deviations = {}, {}
    for name in runs[0].columns:
        if not all(name in run.columns for run in runs):
            continue
        steps = reduce(np.intersect1d, [run.columns[name][0] for run in runs])
        if not len(steps):
            continue
        values = np.stack([run.columns[name][1][np.isin(run.columns[name][0], steps)] for run in runs])
        columns[name] = np.mean([run.position(steps) for run in runs], axis=0), values.mean(axis=0)
        if len(runs) > 1:
            deviations[name] = values.std(axis=0, ddof=1)
    mean = f" (mean of {len(runs)})" if len(runs) > 1 else ""
    partial = frozenset(name for run in runs for name in run.columns) - columns.keys()
    return Curves(f"{label}{mean}", columns, deviations, partial)


def smoothed(values: np.ndarray, keep: float, steps: np.ndarray | None = None) -> np.ndarray:
    """Exponential moving average with weights keep^(points ago), normalized, so that it has no start-up bias.

    Points closer together than usual count, and age, in proportion to their distance, so that the dense start of a run
    does not outweigh the rest.

    Args:
        values: one for each point
        keep: the share of the average that a point leaves, from 0 to below 1
        steps: of the points, ascending. Default: all distances are equal

    >>> smoothed(np.array([1.0, 4.0]), 0.5), smoothed(np.array([1.0, 4.0]), 0.5, np.array([10, 20]))
    (array([1., 3.]), array([1., 3.]))
    """
    gaps = np.ones(len(values))
    if steps is not None and len(steps) > 1 and keep > 0:
        usual = float(np.median(np.diff(steps)[-(len(steps) // 2) :]))  # of the later half
        gaps = np.diff(steps, prepend=max(0.0, steps[0] - usual)) / usual
    mean, weight, found = 0.0, 0.0, []
    for value, gap in zip(values, gaps, strict=True):
        kept, new = keep**gap, 1 - keep**gap
        mean, weight = kept * mean + new * value, kept * weight + new
        found.append(mean / weight)
    return np.array(found)
