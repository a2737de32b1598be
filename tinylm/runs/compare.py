"""Comparison of runs: the cost and result of each, and how much a result varies with the seed.

Runs that differ in nothing that matters are averaged (`tinylm.runs.settings`). Everything is read from the run folders
(config.yaml, metrics.csv, model/); finished runs need no PyTorch.
"""

import glob
import itertools
import math
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.errors import DataError, MissingInputError, TinyLMError, notice
from tinylm.files import file_size, parse_json, read_range
from tinylm.locate import command
from tinylm.runs.folder import is_finished
from tinylm.runs.lineage import network_config, read_config, token_counter
from tinylm.runs.metrics import read_metrics
from tinylm.runs.settings import SEEDS, Settings, alike, flat_config, key, labels, read_settings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, or the mean of several that differ only in their seed. None: unknown."""

    name: str
    runs: int = 1
    """Number of runs averaged."""
    finished: bool
    planned: int | None
    """Steps in the config."""
    parameters: float | None
    tokens: float | None
    """Training tokens, repetitions and those of the parent run included."""
    steps: float
    val_loss: float | None
    """Lowest validation loss, in nats per token."""
    bpb: float | None
    """Bits per byte, at the same step."""
    excess: float | None
    """Excess over the loss floor, as a fraction, at the same step."""
    seconds: float | None
    """Training time without validation and saving."""
    spread: dict[str, float]
    """Sample standard deviations by field; empty for a single run."""


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Finds the run folders among paths, folders of runs and patterns (`runs/*`); others are skipped with a notice.

    Raises:
        MissingInputError: if there is no run.
    """
    found, others = [], []
    for path in [Path(each) for given in paths for each in sorted(glob.glob(str(given))) or [given]]:
        inside = sorted(config.parent for config in path.glob("*/config.yaml"))
        runs = [path] if (path / "config.yaml").is_file() else inside
        found += runs
        others += [] if runs else [path]
    if not found:
        named = ", ".join(map(str, others[:3])) or "nothing"
        raise MissingInputError(f"{named}: not a run (a run folder has a config.yaml); train one with {command('fit')}")
    for path in others:
        notice(f"{path}: not a run (no config.yaml); skipped")
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Row:
    """Reads the figures of a run.

    Raises:
        DataError: if its files are damaged.
    """
    with reading(folder):
        config = read_config(folder)
        columns = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else {}
        planned = config["trainer"]["max_steps"]
        steps = columns.get("train/loss", ([0], []))[0][-1]
        tokens = token_counter(folder, config, columns)
        return Row(
            name=folder.name,
            finished=is_finished(folder),
            planned=planned if planned > 0 else None,
            parameters=count_parameters(folder, config),
            tokens=None if tokens is None else float(tokens([steps])[0]) if steps else 0.0,
            steps=steps,
            seconds=training_seconds(*columns.get("perf/step_seconds", ([], []))),
            spread={},
            **best_validation(columns),
        )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns errors about the files of a run into a DataError that names the run."""
    try:
        yield
    except TinyLMError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{folder}: is damaged, or of another version ({reason}); leave it out") from error


def best_validation(columns: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Loss, bits per byte and excess at the step of the lowest validation loss; None where unknown."""
    steps, losses = columns.get("val/loss", ([], []))
    best = steps[losses.index(min(losses))] if losses else None
    names = {"val_loss": "val/loss", "bpb": "val/bpb", "excess": "val/excess"}
    tables = {name: dict(zip(*columns.get(key, ([], [])), strict=True)) for name, key in names.items()}
    return {name: None if best is None else table.get(best) for name, table in tables.items()}


def training_seconds(steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Time of all steps, without validation, saving and interruptions; None for no steps.

    Args:
        steps: step of each row of metrics.csv
        seconds: mean time of a step since the row before
    """
    return elapsed_seconds(steps, seconds)[-1] if steps else None


def elapsed_seconds(steps: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Training time up to each row; the arguments are those of `training_seconds`."""
    lengths = [step - before for before, step in zip([0, *steps[:-1]], steps, strict=True)]
    return list(itertools.accumulate(length * each for length, each in zip(lengths, seconds, strict=True)))


def count_parameters(folder: Path, config: dict[str, Any]) -> int | None:
    """Number of parameters, tied ones counted once: of the saved model, else computed from the config."""
    weights = folder / "model" / "model.safetensors"
    if weights.is_file():
        length = int.from_bytes(read_range(weights, 0, 8), "little")
        header = parse_json(read_range(weights, 8, min(8 + length, file_size(weights))), str(weights))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    network = network_config(config)
    if network is None:
        return None
    from tinylm.model import parameter_count

    return parameter_count(network)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing that matters, or a run that stands alone.

    Attributes:
        label: says in words what tells this group from the others, such as `lr 0.003, width 32`
        members: their positions among the runs
    """

    label: str
    members: tuple[int, ...]


def group_runs(
    folders: Sequence[Path], rows: Sequence[Row], *, join: bool = True, keep: Collection[str] = ()
) -> tuple[list[Group], list[str]]:
    """Groups runs whose settings are alike, and says which ones are left out of their group, and why.

    Args:
        folders: run folders
        rows: what `read_run` has read of them
        join: whether to group them at all
        keep: entries that matter for once, though they are in `FREE`

    Raises:
        DataError: if a run's files are damaged.
    """
    runs = all_settings(folders, keep)
    keys = [key(run) for run in runs]
    validated = {each for each, row in zip(keys, rows, strict=True) if row.val_loss is not None}
    groups: dict[str, list[int]] = {}
    remarks = []
    for index, (folder, row, each) in enumerate(zip(folders, rows, keys, strict=True)):
        reason = why_alone(row, each in validated)
        if reason and join and keys.count(each) > 1:
            remarks.append(f"{folder}: {reason}; not averaged with the other runs of its settings")
        groups.setdefault(each if join and not reason else f"{index}", []).append(index)
    remarks += [remark for members in groups.values() for remark in repeats([folders[index] for index in members])]
    stems = [stem([rows[index].name for index in members]) for members in groups.values()]
    differ = labels([runs[members[0]] for members in groups.values()])
    pairs = zip(distinct(differ, stems), groups.values(), strict=True)
    found = [Group(name, tuple(members)) for name, members in pairs]
    return sorted(found, key=lambda group: natural(group.label)) if any(differ) else found, remarks


def natural(label: str) -> list[tuple[float, str]]:
    """A sort key of labels: numbers by their values, the text between them by its letters."""
    numbers = re.split(r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)", label)
    return [(float(part), "") if place % 2 else (math.inf, part) for place, part in enumerate(numbers)]


def all_settings(folders: Sequence[Path], keep: Collection[str] = ()) -> list[Settings]:
    """The settings of runs, which can be compared. DataError if a run's files are damaged."""
    runs = []
    for folder in folders:
        with reading(folder):
            runs.append(read_settings(folder, keep))
    return alike(runs)


def distinct(names: Sequence[str], stems: Sequence[str]) -> list[str]:
    """Labels, with the names of the runs where there is none, or where two are equal."""
    return [
        stem if not name else f"{name} ({stem})" if names.count(name) > 1 else name
        for name, stem in zip(names, stems, strict=True)
    ]


def repeats(folders: Sequence[Path]) -> list[str]:
    """Remarks on runs of a group that have the seeds of another: the spread over seeds is larger than it seems."""
    seen: dict[str, Path] = {}
    remarks = []
    for folder in folders:
        config = flat_config(read_config(folder))
        seeds = key({name: config.get(name) for name in SEEDS})
        if isinstance(config.get("seed_everything"), int) and seen.setdefault(seeds, folder) != folder:
            remarks.append(
                f"{folder}: has the seeds of {seen[seeds]}; it counts as a run of its own in mean and spread"
            )
    return remarks


def why_alone(row: Row, others_validated: bool) -> str | None:
    """The reason why a run is not averaged with others; None if it may be."""
    if not row.finished:
        return "is unfinished"
    if row.planned is not None and row.steps > row.planned:
        return f"has {row.steps:,} steps, more than the {row.planned:,} of its config"
    return "has no validation" if row.val_loss is None and others_validated else None


def group_by_seed(folders: Sequence[Path], rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The means of the groups of two runs or more, and the remarks of `group_runs`."""
    groups, remarks = group_runs(folders, rows)
    several = [group for group in groups if len(group.members) > 1]
    return [average(group.label, [rows[i] for i in group.members]) for group in several], remarks


def stem(names: Sequence[str]) -> str:
    """The beginning that names share, or the first name."""
    letters = zip(*names, strict=False)
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, letters)))
    return names[0][:shared].rstrip("-_. ") or names[0]


def average(label: str, rows: Sequence[Row]) -> Row:
    """Means and sample standard deviations of the fields that all rows have."""
    means: dict[str, Any] = {}
    spread = {}
    for name in ("parameters", "tokens", "steps", "val_loss", "bpb", "excess", "seconds"):
        values = [getattr(row, name) for row in rows]
        known = None not in values
        means[name] = statistics.fmean(values) if known else None
        if known and name not in ("parameters", "tokens", "steps"):
            spread[name] = statistics.stdev(values)
    name = f"{label} (mean of {len(rows)})"
    planned = rows[0].planned
    return Row(name=name, runs=len(rows), finished=True, planned=planned, spread=spread, **means)


def sort_rows(rows: Iterable[Row], column: str) -> list[Row]:
    """Sorts rows by a field in ascending order, unknown values last."""
    return sorted(rows, key=lambda row: (getattr(row, column) is None, getattr(row, column)))
