"""Curves of runs for the page of `tinylm play`, read again whenever a run has written more."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError, TinyLMError, first_line
from tinylm.runs.compare import reading
from tinylm.runs.folder import is_finished
from tinylm.runs.lineage import planned_steps, read_config
from tinylm.runs.metrics import read_metrics
from tinylm.serving.inside import number

MOST_POINTS = 2000  # of a curve; a longer curve is thinned out

Columns = dict[str, tuple[list[int], list[float]]]


class Runs:
    """The runs in folders: run folders, and folders of runs, in which new runs may appear.

    Args:
        paths: folders
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)
        self._read: dict[Path, tuple[str, Columns]] = {}  # version and content of metrics.csv

    def folders(self) -> dict[str, Path]:
        """The run folders by name, most recently written first."""
        found = {
            config.parent: _modified(config.with_name("metrics.csv"))
            for path in self.paths
            for config in (path / "config.yaml", *path.glob("*/config.yaml"))
            if config.is_file()
        }
        ordered = sorted(found, key=found.__getitem__, reverse=True)
        names = [folder.resolve().name for folder in ordered]
        return {
            name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, ordered, strict=True)
        }

    def overview(self) -> list[dict[str, Any]]:
        """Each run: its name, whether it is finished, its last step, its metrics, and its version, which changes."""
        return [self._describe(name, folder) for name, folder in self.folders().items()]

    def _describe(self, name: str, folder: Path) -> dict[str, Any]:
        described: dict[str, Any] = {"name": name, "finished": is_finished(folder), "problem": None}
        try:
            version, columns = self._columns(folder)
            planned = planned_steps(read_config(folder)) if (folder / "config.yaml").is_file() else None
        except (TinyLMError, KeyError, TypeError) as error:
            return described | {"version": "", "metrics": [], "step": 0, "planned": None, "problem": first_line(error)}
        step = max((steps[-1] for steps, _ in columns.values()), default=0)
        return described | {"version": version, "metrics": list(columns), "step": step, "planned": planned}

    def curve(self, name: str, metric: str) -> dict[str, Any]:
        """A metric of a run: steps and values. ConfigError for an unknown run; no points for an unknown metric."""
        folder = self.folders().get(name)
        if folder is None:
            raise ConfigError(f"{name}: no such run")
        steps, values = self._columns(folder)[1].get(metric, ([], []))
        every = max(-(-len(steps) // MOST_POINTS), 1)
        kept = sorted({*range(0, len(steps), every), *range(len(steps))[-1:]})
        return {"steps": [steps[i] for i in kept], "values": [number(values[i], 6) for i in kept]}

    def _columns(self, folder: Path) -> tuple[str, Columns]:
        """The content of a run's metrics.csv. A row that is still being written is left for the next call."""
        path = folder / "metrics.csv"
        version = str(_modified(path))
        earlier = self._read.get(folder)
        if earlier is not None and earlier[0] == version:
            return earlier
        try:
            with reading(folder):
                columns = read_metrics(path) if path.is_file() else {}
        except TinyLMError:
            if earlier is None:
                raise
            return earlier
        self._read[folder] = version, columns
        return version, columns


def _modified(path: Path) -> int:
    """The time at which a file was written, in ns; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
