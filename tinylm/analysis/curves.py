"""Run folders as curves to draw: against steps, tokens, FLOPs or time, and runs that differ by their seed as one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.analysis.compare import batch_tokens, network_config, read_config, seed_group
from tinylm.analysis.plots import Curves, read_metrics
from tinylm.errors import DataError

AXES = {"steps": "step", "tokens": "tokens", "flops": "FLOPs", "time": "training time (s)"}


def read_curves(folders: Sequence[Path], axis: str = "steps", *, join_seeds: bool = True) -> list[Curves]:
    """The curves of runs, under their folders' names.

    Args:
        folders: of the runs
        axis: one of `AXES`
        join_seeds: draw the mean of runs whose configs differ by nothing but the seed

    Raises:
        DataError: if a run has nothing to draw, or its files are not what a run leaves.
    """
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(seed_group(read_config(folder)) if join_seeds else str(folder), []).append(folder)
    return [mean_of([_read(folder, axis) for folder in group]) for group in groups.values()]


def _read(folder: Path, axis: str) -> Curves:
    if not (folder / "metrics.csv").is_file():
        raise DataError(f"{folder}: has no metrics.csv, so there is nothing to draw; leave it out")
    columns = read_metrics(folder / "metrics.csv")
    if not columns:
        raise DataError(f"{folder}: metrics.csv has no row yet; wait for the first, or leave the run out")
    place = _axis(folder, axis, columns)
    return Curves(
        folder.name,
        {name: (place(np.array(steps)), np.array(values)) for name, (steps, values) in columns.items()},
    )


def _axis(folder: Path, axis: str, columns: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Where steps stand on an axis."""
    if axis == "steps":
        return lambda steps: steps
    config = read_config(folder)
    tokens = batch_tokens(config, columns)
    if axis == "tokens":
        return lambda steps: steps * tokens
    if axis == "flops":
        each = _flops_per_token(folder, config)
        return lambda steps: steps * (float(tokens) * each)
    if "perf/step_seconds" not in columns:
        raise DataError(f"{folder}: metrics.csv has no perf/step_seconds, so its time is not known; take tokens")
    rows, each = map(np.array, columns["perf/step_seconds"])
    seconds = np.cumsum(np.diff(rows, prepend=0) * each)  # as each row speaks of the steps since the one before
    return lambda steps: np.interp(steps, [0, *rows], [0, *seconds])


def _flops_per_token(folder: Path, config: dict[str, Any]) -> int:
    from tinylm.model import flops_per_token  # PyTorch takes a second

    network = network_config(folder, config)
    if network is None:
        raise DataError(f"{folder}: its config.yaml does not say the size of the vocabulary; take tokens")
    return flops_per_token(network)


def mean_of(runs: Sequence[Curves]) -> Curves:
    """The mean of runs and its sample standard deviation, at the steps that all of them have; of one, itself."""
    if len(runs) == 1:
        return runs[0]
    columns, spread = {}, {}
    for name in runs[0].columns:
        if not all(name in run.columns for run in runs):
            continue
        steps = [run.columns[name][0] for run in runs]
        shared = min(map(len, steps))  # a run that goes on still is drawn as far as the others
        values = np.stack([run.columns[name][1][:shared] for run in runs])
        columns[name] = np.mean([each[:shared] for each in steps], axis=0), values.mean(axis=0)
        spread[name] = values.std(axis=0, ddof=1)
    return Curves(f"{runs[0].label} and {len(runs) - 1} more", columns, spread)
