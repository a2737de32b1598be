"""Shortcuts of runs in tests: they copy their curves, and do not wait until their files are on the disk.

Drawing and waiting take half a second each, longer than most of these runs train. Imported before `tinylm.training`, by
tests/conftest.py and by the server that forks processes.
"""

import os
from pathlib import Path

from tinylm.files import atomic_write
from tinylm.runs import plots

drawn_curves = plots.draw_curves
COPY = Path(__file__).parents[1] / "docs" / "tutorial" / "curves.png"


def copied_curves(metrics: str | Path, picture: str | Path, title: str) -> None:
    """Reads the metrics of a run as `draw_curves` does, and writes the tutorial's picture."""
    plots.read_metrics(metrics)
    plots.read_samples(Path(metrics).with_name("samples.txt"))
    with atomic_write(picture) as file:
        file.write(COPY.read_bytes())


def no_fsync(descriptor: int) -> None:
    """Returns at once: files of tests need not survive a power cut."""


plots.draw_curves = copied_curves
os.fsync = no_fsync
