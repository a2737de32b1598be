"""Checkpoints: a run as it stood after a step, to go on from as if it had never stopped.

A checkpoint is a NumPy archive with the parameters under their own names, as `files.load` takes them for a model, and
beside them what else decides the steps to come: the optimizer's memory, and how many steps are done. It is written
beside its place and renamed, so that whoever is killed while writing leaves the earlier one; that it is undamaged is
checked by the archive's own CRCs.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.files import TRAINING
from tinylm.reference.functions import Array
from tinylm.reference.optim import Optimizer
from tinylm.reference.transformer import NumpyTransformerLM

OPTIMIZER = f"{TRAINING}optimizer/"  # before the names of the optimizer's arrays


@dataclass
class Checkpoint:
    """A run as it stood after a step.

    Attributes:
        model: with the step's parameters
        state: the optimizer's
        step: steps done
        notes: whatever the caller wanted to be remembered, as plain values
    """

    model: NumpyTransformerLM
    state: dict[str, Array]
    step: int
    notes: dict[str, Any]


def save_checkpoint(
    path: str | Path, model: NumpyTransformerLM, optimizer: Optimizer, step: int, notes: dict[str, Any] | None = None
) -> None:
    """Writes a checkpoint, which is whole or absent, whenever the process is killed; an earlier one is replaced.

    Args:
        path: the file, .npz
        model: the network
        optimizer: over its parameters
        step: steps done
        notes: what else to remember, plain values
    """
    arrays: dict[str, Any] = {"config": json.dumps(model.config.to_dict()), **model.parameters}
    arrays |= {f"{OPTIMIZER}{name}": array for name, array in optimizer.state().items()}
    arrays |= {f"{TRAINING}step": step, f"{TRAINING}notes": json.dumps(notes or {})}
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the new name to an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint whole.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # each one's CRC is checked on the way
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is damaged ({error}); use another checkpoint") from error
    if f"{TRAINING}step" not in arrays:
        raise ValueError(f"{path}: is not a training checkpoint")
    config = Config.from_dict(json.loads(str(arrays.pop("config"))))
    training = {name: arrays.pop(name) for name in list(arrays) if name.startswith(TRAINING)}
    state = {name[len(OPTIMIZER) :]: array for name, array in training.items() if name.startswith(OPTIMIZER)}
    notes = json.loads(str(training[f"{TRAINING}notes"]))
    return Checkpoint(NumpyTransformerLM(config, arrays), state, int(training[f"{TRAINING}step"]), notes)


def newest_checkpoint(paths: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    """Of some checkpoints that may be there the one of most steps, and what is wrong with those that are damaged."""
    good, problems = [], []
    for path in filter(Path.is_file, paths):
        try:
            good.append(read_checkpoint(path))
        except ValueError as error:
            problems.append(str(error))
    return max(good, key=lambda each: each.step, default=None), problems
