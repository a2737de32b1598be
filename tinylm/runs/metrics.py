"""Reading of metrics.csv, the metrics of a run."""

import csv
from pathlib import Path


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the columns of a metrics.csv: name -> (steps, values), without empty cells.

    A last line without an end is left out: it is being written, or was cut off.
    """
    columns: dict[str, tuple[list[int], list[float]]] = {}
    text = Path(path).read_bytes().decode()
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        for name, value in row.items():
            if name != "step" and value:
                steps, values = columns.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return columns
