"""The cost and result of each run, to compare runs; `tinylm.runs.groups` averages them over seeds.

Everything is read from the run folders (config.yaml, metrics.csv, model/); finished runs need no PyTorch.
"""

import glob
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.errors import DataError, MissingInputError, TinyLMError, notice
from tinylm.files import file_size, parse_json, read_range
from tinylm.locate import command
from tinylm.runs.folder import is_finished
from tinylm.runs.lineage import network_config, planned_steps, read_config, token_counter
from tinylm.runs.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, or the mean of several that differ only in their seed. None: unknown."""

    name: str
    runs: int = 1
    """Number of runs averaged."""
    finished: bool
    planned: int | None
    """Steps in the config."""
    parameters: float | None
    tokens: float | None
    """Training tokens, including repetitions and the tokens of the parent run."""
    steps: float
    val_loss: float | None
    """Lowest validation loss, in nats per token."""
    bpb: float | None
    """Bits per byte, at the same step."""
    excess: float | None
    """Excess over the loss floor, as a fraction, at the same step."""
    seconds: float | None
    """Training time without validation and saving."""
    spread: dict[str, float]
    """Sample standard deviations by field; empty for a single run."""


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Finds the run folders among paths, folders of runs and patterns (`runs/*`); others are skipped with a notice.

    Raises:
        MissingInputError: if there is no run.
    """
    found, others = [], []
    for path in [Path(each) for given in paths for each in sorted(glob.glob(str(given))) or [given]]:
        inside = sorted(config.parent for config in path.glob("*/config.yaml"))
        runs = [path] if (path / "config.yaml").is_file() else inside
        found += runs
        others += [] if runs else [path]
    if not found:
        named = ", ".join(map(str, others[:3])) or "nothing"
        raise MissingInputError(f"{named}: not a run (a run folder has a config.yaml); train one with {command('fit')}")
    for path in others:
        notice(f"{path}: not a run (no config.yaml); skipped")
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Row:
    """Reads the figures of a run.

    Raises:
        DataError: if its files are damaged.
    """
    with reading(folder):
        config = read_config(folder)
        columns = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else {}
        steps = columns.get("train/loss", ([0], []))[0][-1]
        tokens = token_counter(folder, config, columns)
        return Row(
            name=folder.name,
            finished=is_finished(folder),
            planned=planned_steps(config),
            parameters=count_parameters(folder, config),
            tokens=None if tokens is None else float(tokens([steps])[0]) if steps else 0.0,
            steps=steps,
            seconds=training_seconds(*columns.get("perf/step_seconds", ([], []))),
            spread={},
            **best_validation(columns),
        )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns errors about the files of a run into a DataError that names the run."""
    try:
        yield
    except TinyLMError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{folder}: is damaged, or of another version ({reason}); leave it out") from error


def best_validation(columns: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Loss, bits per byte and excess at the step of the lowest validation loss; None where unknown."""
    steps, losses = columns.get("val/loss", ([], []))
    best = steps[losses.index(min(losses))] if losses else None
    names = {"val_loss": "val/loss", "bpb": "val/bpb", "excess": "val/excess"}
    tables = {name: dict(zip(*columns.get(key, ([], [])), strict=True)) for name, key in names.items()}
    return {name: None if best is None else table.get(best) for name, table in tables.items()}


def training_seconds(steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Time of all steps, without validation, saving and interruptions; None for no steps.

    Args:
        steps: step of each row of metrics.csv
        seconds: mean time of a step since the row before
    """
    return elapsed_seconds(steps, seconds)[-1] if steps else None


def elapsed_seconds(steps: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Training time up to each row; the arguments are those of `training_seconds`."""
    lengths = [step - before for before, step in zip([0, *steps[:-1]], steps, strict=True)]
    return list(itertools.accumulate(length * each for length, each in zip(lengths, seconds, strict=True)))


def count_parameters(folder: Path, config: dict[str, Any]) -> int | None:
    """Number of parameters, tied ones counted once: of the saved model, else computed from the config."""
    weights = folder / "model" / "model.safetensors"
    if weights.is_file():
        length = int.from_bytes(read_range(weights, 0, 8), "little")
        header = parse_json(read_range(weights, 8, min(8 + length, file_size(weights))), str(weights))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    network = network_config(config)
    if network is None:
        return None
    from tinylm.model import parameter_count

    return parameter_count(network)


def sort_rows(rows: Iterable[Row], column: str) -> list[Row]:
    """Sorts rows by a field in ascending order, unknown values last."""
    return sorted(rows, key=lambda row: (getattr(row, column) is None, getattr(row, column)))
