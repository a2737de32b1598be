"""Reading of metrics.csv, the metrics of a run."""

import csv
from pathlib import Path


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the columns of a metrics.csv: name -> (steps, values), without empty cells."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return columns
