"""MetricsCSV: the logger that writes metrics.csv."""

import csv
import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from tinylm.errors import notice
from tinylm.files import append_text, replace_end, sync_file, write_text


class MetricsCSV(Logger):
    """Logger of `metrics.csv`: one row per step in ascending order, one column per metric, `step` first.

    A resumed run continues the file, after `truncate` has dropped the rows beyond its step.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self._columns = ["step"]
        self._last: dict[str, str] | None = None  # the last row; None: not read yet

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def version(self) -> str:
        """An empty string: runs have no versions."""
        return ""

    @property
    def root_dir(self) -> str:
        """Folder of the file."""
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCSV":
        """This logger."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row, or adds to the row of this step. The file is rewritten for a new column or an earlier step."""
        row = {"step": str(step or 0)} | {
            name: f"{float(value):.9g}" for name, value in metrics.items() if name not in ("step", "epoch")
        }
        if self._last is None:
            self._columns, rows = self._read() if self.path.is_file() else (["step"], [])
            self._last = rows[-1] if rows else {"step": "-1"}
        new, ahead = [name for name in row if name not in self._columns], int(row["step"]) - int(self._last["step"])
        if not new and ahead > 0:
            append_text(self.path, self._row(row))
            self._last = row
        elif not new and ahead == 0 and replace_end(self.path, self._row(self._last), self._row(self._last | row)):
            self._last |= row
        else:
            rows = self._read()[1] if self.path.is_file() else []
            self._columns += new
            self._write(_in_order([*rows, row]))

    @rank_zero_only
    def sync(self) -> None:
        """Flushes the file to disk, so that no row is missing before a checkpoint that survives a power failure."""
        if self.path.is_file():
            sync_file(self.path)

    @rank_zero_only
    def truncate(self, step: int, validating: bool = False) -> None:
        """Drops the rows beyond a step and, if its validation is to be repeated, the results of that; atomically.

        Rows that cannot be read are dropped too; a copy of such a file is kept.
        """
        if not self.path.is_file():
            return
        self._columns, rows, damaged = self._parse()
        if damaged:
            copy = self.path.with_name("metrics-damaged.csv")
            shutil.copyfile(self.path, copy)
            lines = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            notice(f"warning: {self.path}: line {lines} cannot be read and is left out; {copy} is a copy")
        kept = _in_order(row for row in rows if int(row["step"]) <= step)
        if validating and kept and int(kept[-1]["step"]) == step:
            kept[-1] = {name: "" if name.startswith("val/") else value for name, value in kept[-1].items()}
        self._write([row for row in kept if any(value for name, value in row.items() if name != "step")])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        return self._parse()[:2]

    def _parse(self) -> tuple[list[str], list[dict[str, str]], list[int]]:
        """The columns, the rows, and the numbers of the lines that are neither.

        A last line without a line break was cut off by a kill and is ignored.
        """
        text = self.path.read_bytes().decode("utf-8", "replace")
        columns, *lines = [_cells(line) for line in text.split("\n")[:-1]] or [["step"]]
        if columns[:1] != ["step"] or len(set(columns)) < len(columns):
            return ["step"], [], list(range(1, len(lines) + 2))
        rows, damaged = [], []
        for number, cells in enumerate(lines, start=2):
            try:
                row = dict(zip(columns, cells, strict=True))
                for value in (str(int(row["step"])), *filter(None, cells)):
                    float(value)
                rows.append(row)
            except ValueError:
                damaged.append(number)
        return columns, rows, damaged

    def _write(self, rows: list[dict[str, str]]) -> None:
        self._last = rows[-1] if rows else {"step": "-1"}
        write_text(self.path, _line(self._columns) + "".join(map(self._row, rows)))

    def _row(self, row: dict[str, str]) -> str:
        return _line([row.get(name, "") for name in self._columns])


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cells(line: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r").replace("\0", "?")]), [])


def _in_order(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """One row per step, ascending. If a metric has two values, the later one counts."""
    found: dict[int, dict[str, str]] = {}
    for row in rows:
        found.setdefault(int(row["step"]), {}).update({name: value for name, value in row.items() if value})
    return [found[step] for step in sorted(found)]
