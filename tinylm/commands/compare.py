"""Compares runs in a table: `tinylm compare runs/*`.

Runs that differ only in seeds, names, devices or logging get an extra row with mean and standard deviation, named after
their difference from the other runs.
"""

import argparse
import csv
import sys

from tinylm.console import Parser, duration, table
from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.runs.compare import Row, find_runs, read_run, sort_rows
from tinylm.runs.groups import group_by_seed
from tinylm.runs.lineage import unknown_parents

COLUMNS = ("name", "parameters", "tokens", "steps", "val_loss", "bpb", "excess", "seconds")
TITLES = ("run", "parameters", "tokens", "steps", "val loss", "bits/byte", "excess", "time")
SHOWN_AS = {"run": "name", "loss": "val_loss", "bits": "bpb", "time": "seconds"}
SPREAD = ("val_loss", "bpb", "excess", "seconds")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("compare", __doc__)
    parser.add_argument("runs", nargs="*", default=["runs"], help="run folders, or folders of runs (default: runs)")
    parser.add_argument(
        "--sort", default="val_loss", help=f"column to sort by: {', '.join(COLUMNS)} (default: %(default)s)"
    )
    parser.add_argument("--csv", action="store_true", help="print plain numbers as CSV")
    options = parser.parse(arguments)
    options.sort = options.sort.replace("-", "_")
    if options.sort not in COLUMNS:
        hint = did_you_mean(options.sort, COLUMNS, SHOWN_AS) or f"; it is one of {', '.join(COLUMNS)}"
        raise ConfigError(f"--sort {options.sort}: no such column{hint}")
    return options


def count(number: float) -> str:
    """`1,200`, `4.92M` or `3.28B`."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:,.0f}"


FORMATS = {
    "parameters": "{:,.0f}".format,
    "tokens": count,
    "steps": "{:,.0f}".format,
    "val_loss": "{:.4f}".format,
    "bpb": "{:.4f}".format,
    "excess": "{:.1%}".format,
    "seconds": duration,
}


def cell(row: Row, column: str) -> str:
    """Formats a value, with its standard deviation if there is one."""
    value = getattr(row, column)
    if column == "name" or value is None:
        return value or "-"
    text = FORMATS[column](value)
    return f"{text} ± {FORMATS[column](row.spread[column])}" if column in row.spread else text


def state(row: Row) -> str:
    """A remark on an unfinished run."""
    if row.finished:
        return ""
    return f"unfinished, {row.planned:,} steps planned" if row.planned else "unfinished"


def print_table(rows: list[Row]) -> None:
    """Prints aligned columns; the remark on unfinished runs comes last."""
    numbers = table([TITLES, *([cell(row, column) for column in COLUMNS] for row in rows)])
    for line, remark in zip(numbers.splitlines(), ["", *map(state, rows)], strict=True):
        print(f"{line}  {remark}".rstrip())


def print_csv(rows: list[Row]) -> None:
    """Prints one line per run or group; the column `runs` is the number of runs averaged."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{name}_sd" for name in SPREAD), "runs", "finished"])
    for row in rows:
        values = [getattr(row, column) for column in COLUMNS] + [row.spread.get(name) for name in SPREAD]
        writer.writerow(["" if value is None else value for value in [*values, row.runs, int(row.finished)]])


def run(arguments: list[str]) -> None:
    """Prints the runs, then the averages over seeds."""
    options = parse(arguments)
    folders = find_runs(options.runs)
    rows = [read_run(folder) for folder in folders]
    groups, remarks = group_by_seed(folders, rows)
    for remark in [*remarks, *unknown_parents(folders)]:
        notice(remark)
    rows = sort_rows(rows, options.sort) + sort_rows(groups, options.sort)
    (print_csv if options.csv else print_table)(rows)
