"""Groups of runs with equal relevant settings, labelled by their differences, and the means of the groups."""

import itertools
import math
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.runs.compare import Row, reading
from tinylm.runs.lineage import read_config
from tinylm.runs.settings import SEEDS, Settings, alike, flat_config, key, labels, read_settings


@dataclass(frozen=True)
class Group:
    """Runs whose relevant settings are equal, or a single run.

    Attributes:
        label: the difference from other groups in words, such as `lr 0.003, width 32`
        members: their positions among the runs
    """

    label: str
    members: tuple[int, ...]


def group_runs(
    folders: Sequence[Path], rows: Sequence[Row], *, join: bool = True, keep: Collection[str] = ()
) -> tuple[list[Group], list[str]]:
    """Groups runs with equal relevant settings, and says which runs are left out of their group, and why.

    Args:
        folders: run folders
        rows: their rows from `read_run`
        join: whether to group them at all
        keep: entries that count as relevant although they are in `FREE`

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
    names = distinct(differ, stems, [len(members) == 1 for members in groups.values()])
    found = [Group(name, tuple(members)) for name, members in zip(names, groups.values(), strict=True)]
    return sorted(found, key=lambda group: natural(group.label)) if any(differ) else found, remarks


def natural(label: str) -> list[tuple[float, str]]:
    """A sort key of labels: numbers sort by value, the text between them by its letters."""
    numbers = re.split(r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)", label)
    return [(float(part), "") if place % 2 else (math.inf, part) for place, part in enumerate(numbers)]


def all_settings(folders: Sequence[Path], keep: Collection[str] = ()) -> list[Settings]:
    """The settings of runs, which can be compared. DataError if a run's files are damaged."""
    runs = []
    for folder in folders:
        with reading(folder):
            runs.append(read_settings(folder, keep))
    return alike(runs)


def distinct(names: Sequence[str], stems: Sequence[str], alone: Sequence[bool]) -> list[str]:
    """Labels, with run names where a label is empty; a single run whose label is not unique adds its name."""
    return [
        stem if not name else f"{name} ({stem})" if single and names.count(name) > 1 else name
        for name, stem, single in zip(names, stems, alone, strict=True)
    ]


def repeats(folders: Sequence[Path]) -> list[str]:
    """Remarks on runs of a group that repeat another's seeds: the true spread over seeds is larger than it seems."""
    seen: dict[str, Path] = {}
    remarks = []
    for folder in folders:
        config = flat_config(read_config(folder))
        seeds = key({name: config.get(name) for name in SEEDS})
        if isinstance(config.get("seed_everything"), int) and seen.setdefault(seeds, folder) != folder:
            remarks.append(f"{folder}: has the seeds of {seen[seeds]}; it counts as a separate run in mean and spread")
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
    """The common beginning of names, or the first name."""
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
