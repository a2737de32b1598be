"""Averages weights over the last checkpoints of a run, or over several runs (model soups, Wortsman et al. 2022)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from tinylm.bundle import Bundle, load_bundle, read_checkpoint
from tinylm.checks import require
from tinylm.errors import ConfigError, MissingInputError
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.model.quantized import describe_layers

KEEP_ALL = "lightning.pytorch.callbacks.ModelCheckpoint with save_top_k: -1 keeps all"
"""The remedy if a run has too few checkpoints."""


def checkpoints_by_step(run: str | Path) -> dict[int, Path]:
    """One checkpoint of a run for each saved step; others are preferred to best.ckpt and last.ckpt."""
    found: dict[int, Path] = {}
    for path in sorted(
        Path(run, "checkpoints").glob("*.ckpt"), key=lambda path: path.name not in ("best.ckpt", "last.ckpt")
    ):
        found[read_checkpoint(path, lambda *_: None)["global_step"]] = path
    return found


def last_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The last checkpoints of a run, oldest first, one of each step.

    Raises:
        MissingInputError: if there are too few.
    """
    found = checkpoints_by_step(run)
    if len(found) < count:
        problem = f"has checkpoints of {len(found)} steps, --last {count} needs {count}"
        raise MissingInputError(f"{run}: {problem}; {KEEP_ALL}")
    return [found[step] for step in sorted(found)[-count:]]


def average(paths: Iterable[str | Path]) -> Bundle:
    """The model whose weights are the mean of several models' weights, computed in float64.

    Args:
        paths: run folders, model folders or checkpoints; LoRA adapters are merged first

    Raises:
        ConfigError: if architecture or tokenizer differ, or a model is quantized.
    """
    paths = list(paths)
    first = load_bundle(paths[0])
    sums: dict[str, Tensor] = {}
    for path, bundle in _alike(paths, first):
        require(not describe_layers(bundle.model), f"{path}: is quantized; average the originals")
        for name, weight in bundle.model.state_dict().items():
            sums[name] = sums.get(name, 0.0) + weight.double()
    dtypes = {name: weight.dtype for name, weight in first.model.state_dict().items()}
    first.model.load_state_dict({name: (total / len(paths)).to(dtypes[name]) for name, total in sums.items()})
    info = {name: value for name, value in first.info.items() if not name.startswith("val/")}
    return Bundle(first.model, first.tokenizer, {**info, "averaged": [str(path) for path in paths]})


def _alike(paths: list[str | Path], first: Bundle) -> Iterator[tuple[str | Path, Bundle]]:
    """The models one by one, each compared with the first."""
    yield paths[0], first
    ours = first.model.config.to_dict()
    for path in paths[1:]:
        bundle = load_bundle(path)
        for name, value in bundle.model.config.to_dict().items():
            alike = name in WITHOUT_WEIGHTS or value == ours[name]
            require(alike, f"{name}: {paths[0]} {ours[name]}, {path} {value}; only alike models can be averaged")
        if bundle.tokenizer.sha256 != first.tokenizer.sha256:
            raise ConfigError(
                f"tokenizer: {paths[0]} and {path} have different ones; only models of one kind can be averaged"
            )
        yield path, bundle
