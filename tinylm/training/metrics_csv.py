"""MetricsCSV: the logger that writes metrics.csv."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from tinylm.files import append_text, write_text


class MetricsCSV(Logger):
    """Logger of `metrics.csv`: one row per call, one column per metric, `step` first.

    Rows are appended, so a resumed run continues the file, after `truncate` has dropped the rows beyond its step.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self._columns = self._read()[0] if self.path.is_file() else ["step"]

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
        """Appends a row; a new metric adds a column, for which the file is rewritten."""
        row = {"step": str(step)} | {
            name: f"{float(value):.9g}" for name, value in metrics.items() if name not in ("step", "epoch")
        }
        if new := [name for name in row if name not in self._columns]:
            rows = self._read()[1] if self.path.is_file() else []
            self._columns += new
            self._write([*rows, row])
        else:
            line = io.StringIO(newline="")
            csv.DictWriter(line, self._columns).writerow(row)
            append_text(self.path, line.getvalue())

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drops the rows beyond a step, atomically."""
        if self.path.is_file():
            self._write([row for row in self._read()[1] if int(row["step"]) <= step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values()]  # a kill may have truncated the last one
            return list(reader.fieldnames or ["step"]), rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
