"""Puts runs beside each other: `tinylm compare runs/*`.

Runs that differ only by their seed are summed up in a line of their own: mean and standard deviation.
"""

import argparse
import csv
import sys

from tinylm.console import Parser
from tinylm.errors import ConfigError, did_you_mean
from tinylm.runs.compare import Row, find_runs, group_by_seed, read_run, sort_rows

COLUMNS = ("name", "parameters", "tokens", "steps", "val_loss", "bpb", "excess", "seconds")
TITLES = ("run", "parameters", "tokens", "steps", "val loss", "bits/byte", "excess", "time", "")
SHOWN_AS = {"run": "name", "loss": "val_loss", "bits": "bpb", "time": "seconds"}
SPREAD = ("val_loss", "bpb", "excess", "seconds")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("compare", __doc__)
    parser.add_argument("runs", nargs="*", default=["runs"], help="run folders, or folders of them (runs)")
    parser.add_argument("--sort", default="val_loss", help=f"one of {', '.join(COLUMNS)} (%(default)s)")
    parser.add_argument("--csv", action="store_true", help="plain numbers, separated by commas")
    options = parser.parse(arguments)
    options.sort = options.sort.replace("-", "_")
    if options.sort not in COLUMNS:
        hint = did_you_mean(options.sort, COLUMNS, SHOWN_AS) or f"; it is one of {', '.join(COLUMNS)}"
        raise ConfigError(f"--sort {options.sort}: no such column{hint}")
    return options


def duration(seconds: float) -> str:
    """`48 s`, `3 min 59 s` or `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


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
    """A value as people read it, with its spread where it has one."""
    value = getattr(row, column)
    if column == "name" or value is None:
        return value or "-"
    text = FORMATS[column](value)
    return f"{text} ± {FORMATS[column](row.spread[column])}" if column in row.spread else text


def state(row: Row) -> str:
    """What is to be said of a run that is not finished."""
    if row.finished:
        return ""
    return f"unfinished, {row.planned:,} steps planned" if row.planned else "unfinished"


def print_table(rows: list[Row]) -> None:
    """Names to the left, numbers to the right."""
    lines = [list(TITLES)] + [[*(cell(row, column) for column in COLUMNS), state(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        numbers = [text.rjust(width) for text, width in zip(line[1:-1], widths[1:-1], strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *numbers, line[-1]]).rstrip())


def print_csv(rows: list[Row]) -> None:
    """One line a run or group; `runs` says how many it is the mean of."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{name}_sd" for name in SPREAD), "runs", "finished"])
    for row in rows:
        values = [getattr(row, column) for column in COLUMNS] + [row.spread.get(name) for name in SPREAD]
        writer.writerow(["" if value is None else value for value in [*values, row.runs, int(row.finished)]])


def run(arguments: list[str]) -> None:
    """Prints the runs, then the groups."""
    options = parse(arguments)
    folders = find_runs(options.runs)
    rows = [read_run(folder) for folder in folders]
    groups = group_by_seed(folders, rows)
    rows = sort_rows(rows, options.sort) + sort_rows(groups, options.sort)
    (print_csv if options.csv else print_table)(rows)
