"""Reading of metrics.csv and samples.txt, the metrics of a run and the texts that it wrote."""

import csv
import re
from pathlib import Path


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the columns of a metrics.csv: name -> (steps, values), without empty cells.

    A last line without a line break is left out: it is being written, or was cut off.
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


def read_samples(path: str | Path) -> list[tuple[int, str]]:
    """Reads the first sample of each step in a samples.txt: its step and its text; none if there is no file."""
    if not Path(path).is_file():
        return []
    _, *parts = re.split(r"^=== step (\d+)\n", Path(path).read_bytes().decode(errors="replace"), flags=re.MULTILINE)
    samples: dict[int, str] = {}
    for step, text in zip(parts[::2], parts[1::2], strict=True):
        samples.setdefault(int(step), text.strip())
    return list(samples.items())
