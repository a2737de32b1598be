"""Comparison of runs: the cost and result of each, and how much a result varies with the seed.

Everything is read from the run folders (config.yaml, metrics.csv, model/); finished runs need no PyTorch.
"""

import glob
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.errors import DataError, MissingInputError, TinyLMError, notice
from tinylm.files import file_size, parse_json, read_range
from tinylm.locate import command
from tinylm.runs.folder import is_finished
from tinylm.runs.metrics import read_metrics
from tinylm.safe_yaml import read_yaml

if TYPE_CHECKING:
    from tinylm.model import ModelConfig

FREE = ("seed_everything", "data.seed", "data.cache_dir", "model.network.vocab_size", "run", "trainer.logger",
        "weights_only")  # fmt: skip
"""Config entries that may differ between runs that are averaged over seeds."""


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
    tokens: float
    """Training tokens, repetitions included."""
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
        planned = config["trainer"]["max_steps"]
        steps = columns.get("train/loss", ([0], []))[0][-1]
        return Row(
            name=folder.name,
            finished=is_finished(folder),
            planned=planned if planned > 0 else None,
            parameters=count_parameters(folder, config),
            tokens=steps * batch_tokens(config, columns),
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


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run."""
    return read_yaml(folder / "config.yaml")


def batch_tokens(config: dict[str, Any], columns: dict[str, tuple[list[int], list[float]]]) -> int:
    """Tokens per optimizer step. For pairs, whose padding varies, it follows from the measured speed."""
    rates, seconds = (columns.get(f"perf/{name}", ([], []))[1] for name in ("tokens_per_sec", "step_seconds"))
    if (config["data"].get("pairs") or "class_path" in config["data"]) and rates and seconds:
        return round(rates[0] * seconds[0])
    return config["data"].get("batch_size", 0) * config["model"]["network"]["max_seq_len"]


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


def network_config(config: dict[str, Any]) -> "ModelConfig | None":
    """The ModelConfig of a run; None if its config.yaml has no vocab_size, as in older runs."""
    if config["model"]["network"].get("vocab_size") is None:
        return None
    from tinylm.model import ModelConfig  # PyTorch takes a second

    return ModelConfig(**config["model"]["network"])


def group_by_seed(folders: Sequence[Path], rows: Sequence[Row]) -> list[Row]:
    """Averages finished runs whose configs differ in nothing but `FREE`; groups have two runs or more.

    Runs without a validation, or with more steps than in their config, are left out.
    """
    groups: dict[str, list[Row]] = {}
    for folder, row in zip(folders, rows, strict=True):
        as_planned = row.planned is None or row.steps <= row.planned
        if row.finished and row.val_loss is not None and as_planned:
            groups.setdefault(seed_group(read_config(folder)), []).append(row)
    return [average(group) for group in groups.values() if len(group) > 1]


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config to dotted names."""
    flat = {}
    for name, value in config.items():
        flat |= flat_config(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def seed_group(config: dict[str, Any]) -> str:
    """A key shared by runs whose configs differ in nothing but `FREE`."""
    flat = flat_config(config)
    kept = {name: flat[name] for name in flat if not any(f"{name}.".startswith(f"{free}.") for free in FREE)}
    return json.dumps(kept, sort_keys=True)


def average(rows: Sequence[Row]) -> Row:
    """Means and sample standard deviations of the fields that all rows have."""
    means: dict[str, Any] = {}
    spread = {}
    for name in ("parameters", "tokens", "steps", "val_loss", "bpb", "excess", "seconds"):
        values = [getattr(row, name) for row in rows]
        known = None not in values
        means[name] = statistics.fmean(values) if known else None
        if known and name not in ("parameters", "tokens", "steps"):
            spread[name] = statistics.stdev(values)
    first = rows[0]
    letters = zip(*(row.name for row in rows), strict=False)
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, letters)))
    stem = first.name[:shared].rstrip("-_. ") or first.name
    return Row(
        name=f"{stem} (mean of {len(rows)})",
        runs=len(rows),
        finished=True,
        planned=first.planned,
        spread=spread,
        **means,
    )


def sort_rows(rows: Iterable[Row], column: str) -> list[Row]:
    """Sorts rows by a field in ascending order, unknown values last."""
    return sorted(rows, key=lambda row: (getattr(row, column) is None, getattr(row, column)))
