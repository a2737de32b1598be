"""The origin of a run: random weights, or the weights of another run, its parent; and the tokens of both.

A branch (`--ckpt_path`) continues its parent's steps; a finetuned run (`model.init_from`) begins at step 0. In both
cases, the model has also seen the parent's tokens. The parent's run folder is found by the path in config.yaml, or by
its name beside the run. Left out: parents of which only an exported model exists.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm.errors import TinyLMError
from tinylm.files import read_json
from tinylm.locate import MANIFEST
from tinylm.runs.metrics import read_metrics
from tinylm.safe_yaml import read_yaml
from tinylm.stages import Stages

if TYPE_CHECKING:
    from tinylm.model import ModelConfig

Columns = dict[str, tuple[list[int], list[float]]]
Counter = Callable[[Any], np.ndarray]
ORIGINS = ("ckpt_path", "model.init_from")
DEEPEST = 20
"""Most generations; more would mean a circle of runs that were moved or overwritten."""


@dataclass(frozen=True)
class Parent:
    """The run, and the step, from which another run began.

    Attributes:
        entry: the config entry that names it, one of `ORIGINS`
        folder: its run folder
        step: the step of its checkpoint; None if it can no longer be determined
    """

    entry: str
    folder: Path
    step: int | None


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run."""
    return read_yaml(folder / "config.yaml")


def origin(config: dict[str, Any]) -> tuple[str, str] | None:
    """The config entry and the path from which a run began; None if it began at random weights."""
    given = {"ckpt_path": config.get("ckpt_path"), "model.init_from": (config.get("model") or {}).get("init_from")}
    return next(((entry, str(given[entry])) for entry in ORIGINS if given[entry]), None)


def find_parent(folder: Path, config: dict[str, Any]) -> Parent | None:
    """The parent of a run; None if it has no parent, or the parent cannot be found."""
    begun = origin(config)
    if begun is None:
        return None
    entry, path = begun[0], Path(begun[1])
    named = path.parent if path.name == "model" else path.parent.parent if path.suffix == ".ckpt" else path
    for run in (named, folder.parent / named.name):
        if (run / "config.yaml").is_file() and run.resolve() != folder.resolve():
            return Parent(entry, run, _parent_step(folder, entry, run, run / path.relative_to(named)))
    return None


def _parent_step(folder: Path, entry: str, run: Path, model: Path) -> int | None:
    """The step of the checkpoint or model folder from which a run began: as recorded, else as in the file itself."""
    recorded = _recorded_step(folder, entry)
    if recorded is not None:
        return recorded
    try:
        if (manifest := model / MANIFEST).is_file() or (manifest := model / "model" / MANIFEST).is_file():
            return read_json(manifest)["info"].get("step")
        if not model.is_file():
            return None
        from tinylm.bundle import read_checkpoint  # PyTorch takes a second

        step = read_checkpoint(model, lambda *_: None)["global_step"]
    except (TinyLMError, KeyError, TypeError, OSError):
        return None
    first = min((steps[0] for steps, _ in read_metrics(folder / "metrics.csv").values()), default=step)
    return step if entry != "ckpt_path" or step <= first else None  # the run has continued and overwritten it


def _recorded_step(folder: Path, entry: str) -> int | None:
    """The parent's step in run.json, if there is one."""
    try:
        return int(read_json(folder / "run.json")["parents"][entry]["step"])
    except (TinyLMError, OSError, KeyError, TypeError, ValueError):
        return None


def unknown_parents(folders: Iterable[Path]) -> list[str]:
    """Remarks on runs whose token counts leave out the parent's tokens."""
    found = []
    for folder in folders:
        config = read_config(folder)
        begun, parent = origin(config), find_parent(folder, config)
        if begun is not None and parent is None:
            found.append(f"{folder}: {begun[0]} {begun[1]} is not a run that can be found; its tokens are not counted")
        elif parent is not None and parent.step is None:
            found.append(
                f"{folder}: the step at which it left {parent.folder} is unknown; all steps are counted as its own"
            )
    return found


def planned_steps(config: dict[str, Any]) -> int | None:
    """Optimizer steps of a run by its config; None if they follow from epochs, or from `run.seconds`."""
    steps = config["trainer"]["max_steps"]
    return steps if steps > 0 and (config.get("run") or {}).get("seconds") is None else None


def planned_tokens(config: dict[str, Any]) -> Counter | None:
    """The function from steps to their tokens, as planned; None if the config does not give them, as with pairs."""
    data, network = config.get("data") or {}, (config.get("model") or {}).get("network") or {}
    rows, context = data.get("batch_size"), network.get("max_seq_len")
    if data.get("pairs") or not (isinstance(rows, int) and isinstance(context, int)):
        return None
    sizes = Stages.of("data.batch_schedule", data.get("batch_schedule"), rows)
    return lambda steps: sizes.total(np.asarray(steps)) * float(context)


def token_counter(folder: Path, config: dict[str, Any], columns: Columns, depth: int = 0) -> Counter | None:
    """The function from steps to the tokens trained on until then, the parent's included; None if unknown."""
    return _counter(folder, config, columns, lambda _: 1, depth)


def flop_counter(folder: Path, config: dict[str, Any], columns: Columns) -> Counter | None:
    """The function from steps to the FLOPs of training until then, the parent's included; None if unknown."""
    return _counter(folder, config, columns, _flops_per_token, 0)


def _counter(
    folder: Path, config: dict[str, Any], columns: Columns, cost: Callable[[dict[str, Any]], int | None], depth: int
) -> Counter | None:
    """Sums a cost per token over the steps of a run and its ancestors."""
    price, begin = cost(config), 0
    parent = find_parent(folder, config) if depth < DEEPEST else None
    if parent is not None and parent.entry == "ckpt_path":
        begin = parent.step or 0
    own = _own_counter(config, columns, begin)
    if own is None or price is None:
        return None
    each, before = float(price), 0.0
    if parent is not None and parent.step is not None:
        inherited, metrics = read_config(parent.folder), parent.folder / "metrics.csv"
        measured = read_metrics(metrics) if metrics.is_file() else {}
        ancestors = _counter(parent.folder, inherited, measured, cost, depth + 1)
        if ancestors is None:
            return None
        before = float(ancestors([parent.step])[0])

    def count(steps: Any) -> np.ndarray:
        return before + each * own(np.asarray(steps, dtype=float))

    return count


def _own_counter(config: dict[str, Any], columns: Columns, begin: int) -> Counter | None:
    """Tokens since step `begin`: as planned, unless the measured speed implies others, as with varying batches."""
    planned = planned_tokens(config)
    rates, seconds = (columns.get(f"perf/{name}", ([], [])) for name in ("tokens_per_sec", "step_seconds"))
    if rates[0] and rates[0] == seconds[0]:
        rows = np.array([begin, *rates[0]], dtype=float)
        done = np.cumsum(np.round(np.diff(rows) * np.array(rates[1]) * np.array(seconds[1])))
        if planned is None or not math.isclose(done[-1], np.diff(planned(rows[[0, -1]]))[0], rel_tol=0.01):
            return lambda steps: np.asarray(np.interp(steps, rows, [0.0, *done]))
    return None if planned is None else lambda steps: planned(steps) - planned(begin)


def _flops_per_token(config: dict[str, Any]) -> int | None:
    network = network_config(config)
    if network is None:
        return None
    from tinylm.model import flops_per_token  # PyTorch takes a second

    return flops_per_token(network)


def network_config(config: dict[str, Any]) -> "ModelConfig | None":
    """The ModelConfig of a run; None without a vocab_size, as in older runs, or for a foreign module."""
    network = (config.get("model") or {}).get("network") or {}
    if network.get("vocab_size") is None:
        return None
    from tinylm.model import ModelConfig  # PyTorch takes a second

    return ModelConfig(**network)
