"""Runs beside each other: what each cost and reached, and how far a result moves with the seed.

All is read from the run folders (config.yaml, metrics.csv, model/), so it needs neither the network nor, for finished
runs, PyTorch.
"""

import glob
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tinylm.errors import DataError, MissingInputError, TinyLMError, notice
from tinylm.locate import command
from tinylm.runs.plots import read_metrics

if TYPE_CHECKING:
    from tinylm.model import ModelConfig

FREE = ("seed_everything", "data.seed", "data.cache_dir", "run", "trainer.logger", "weights_only")
"""What may differ between runs that are the same but for the seed: nothing of it changes what is being compared."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, or the mean of several that differ only by their seed. None: not known (yet)."""

    name: str
    runs: int = 1
    """How many this is the mean of."""
    finished: bool
    planned: int | None
    """Steps that the run was to take."""
    parameters: float | None
    tokens: float
    """Trained on, repeated ones counted each time."""
    steps: float
    val_loss: float | None
    """The lowest on the whole validation split, in nats per token."""
    bpb: float | None
    """Bits per byte, at the same step."""
    excess: float | None
    """Over the best possible loss, as a fraction, at the same step."""
    seconds: float | None
    """Of training alone, without validation and saving."""
    spread: dict[str, float]
    """Sample standard deviations; empty for a single run."""


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among paths, or inside them where a path is a folder of runs; the rest is skipped with a notice.

    A path may be a pattern, `runs/*`.

    Raises:
        MissingInputError: if none is a run.
    """
    found, others = [], []
    for path in [Path(each) for given in paths for each in sorted(glob.glob(str(given))) or [given]]:
        inside = sorted(config.parent for config in path.glob("*/config.yaml"))
        runs = [path] if (path / "config.yaml").is_file() else inside
        found += runs
        others += [] if runs else [path]
    if not found:
        named = ", ".join(map(str, others[:3])) or "nothing"
        raise MissingInputError(f"{named}: no run (a run's folder has a config.yaml); train one with {command('fit')}")
    for path in others:
        notice(f"{path}: no run (it has no config.yaml); left out")
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Row:
    """Reads a run's figures.

    Raises:
        DataError: if its files are not what a run leaves.
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
    """Says which run it is whose files are not what a run leaves."""
    try:
        yield
    except TinyLMError:
        raise
    except (KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{folder}: is damaged, or no run of this version ({reason}); leave it out") from error


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, and left a model."""
    return (folder / "model" / "tinylm.json").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """A run's resolved config."""
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def batch_tokens(config: dict[str, Any], columns: dict[str, tuple[list[int], list[float]]]) -> int:
    """How many tokens an optimizer step reads. Pairs are padded to the longest, which only the measured speed tells."""
    rates, seconds = (columns.get(f"perf/{name}", ([], []))[1] for name in ("tokens_per_sec", "step_seconds"))
    if config["data"].get("pairs") and rates and seconds:
        return round(rates[0] * seconds[0])
    return config["data"]["batch_size"] * config["model"]["network"]["max_seq_len"]


def best_validation(columns: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Loss, bits per byte and excess (None where unknown) at the step of the lowest validation loss."""
    steps, losses = columns.get("val/loss", ([], []))
    best = steps[losses.index(min(losses))] if losses else None
    names = {"val_loss": "val/loss", "bpb": "val/bpb", "excess": "val/excess"}
    tables = {name: dict(zip(*columns.get(key, ([], [])), strict=True)) for name, key in names.items()}
    return {name: None if best is None else table.get(best) for name, table in tables.items()}


def training_seconds(steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """The time of all steps, from what each row of metrics.csv says of those since the row before.

    Validation, saving and whatever lay between a stop and `--resume` are left out, as they are of the rows.

    Args:
        steps: of the rows
        seconds: that a step took since the row before
    """
    return elapsed_seconds(steps, seconds)[-1] if steps else None


def elapsed_seconds(steps: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """The time up to each row. Arguments as `training_seconds`'s."""
    lengths = [step - before for before, step in zip([0, *steps[:-1]], steps, strict=True)]
    return list(itertools.accumulate(length * each for length, each in zip(lengths, seconds, strict=True)))


def count_parameters(folder: Path, config: dict[str, Any]) -> int | None:
    """The number of weights: of the finished model as stored (tied ones once), else computed from the config."""
    weights = folder / "model" / "model.safetensors"
    if weights.is_file():
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    network = network_config(folder, config)
    if network is None:
        return None
    from tinylm.model import parameter_count

    return parameter_count(network)


def network_config(folder: Path, config: dict[str, Any]) -> "ModelConfig | None":
    """A run's network; None if the first lines of config.yaml do not say the number of tokens."""
    found = re.search(r"^# model\.network\.vocab_size: (\d+)", (folder / "config.yaml").read_text("utf-8"), re.M)
    if found is None:
        return None
    from tinylm.model import ModelConfig  # PyTorch takes a second

    return ModelConfig(**{**config["model"]["network"], "vocab_size": int(found.group(1))})


def group_by_seed(folders: Sequence[Path], rows: Sequence[Row]) -> list[Row]:
    """The mean and spread of every two or more finished runs whose configs differ in nothing but `FREE`.

    A run that was never validated, or went on beyond the steps of its config, is not among them.
    """
    groups: dict[str, list[Row]] = {}
    for folder, row in zip(folders, rows, strict=True):
        as_planned = row.planned is None or row.steps <= row.planned
        if row.finished and row.val_loss is not None and as_planned:
            groups.setdefault(seed_group(read_config(folder)), []).append(row)
    return [average(group) for group in groups.values() if len(group) > 1]


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's nested dicts as one, with dotted names."""
    flat = {}
    for name, value in config.items():
        flat |= flat_config(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def seed_group(config: dict[str, Any]) -> str:
    """What runs have in common that differ by nothing but `FREE`."""
    flat = flat_config(config)
    kept = {name: flat[name] for name in flat if not any(f"{name}.".startswith(f"{free}.") for free in FREE)}
    return json.dumps(kept, sort_keys=True)


def average(rows: Sequence[Row]) -> Row:
    """Means, and sample standard deviations, of what all the rows have."""
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
    """By a field, the least first; those that do not have it last."""
    return sorted(rows, key=lambda row: (getattr(row, column) is None, getattr(row, column)))
