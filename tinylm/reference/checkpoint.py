"""Checkpoints: the state of a run after a step, from which training resumes exactly.

A checkpoint is an archive of `files.py`, which `files.load` reads as a model, with the optimizer's state and the number
of steps added. It is written atomically; damage is detected by the archive's own CRCs.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.reference.config import Config
from tinylm.reference.files import TRAINING, parse_json, read_arrays, write_archive
from tinylm.reference.functions import Array
from tinylm.reference.optim import Optimizer
from tinylm.reference.transformer import NumpyTransformerLM

OPTIMIZER = f"{TRAINING}optimizer/"  # prefix of the names of the optimizer's arrays


@dataclass
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        model: with the parameters after that step
        state: the optimizer's
        step: steps done
        notes: plain values that the caller recorded
    """

    model: NumpyTransformerLM
    state: dict[str, Array]
    step: int
    notes: dict[str, Any]


def save_checkpoint(
    path: str | Path, model: NumpyTransformerLM, optimizer: Optimizer, step: int, notes: dict[str, Any] | None = None
) -> None:
    """Writes a checkpoint atomically; an earlier one is replaced.

    Args:
        path: the file, .npz
        model: the network
        optimizer: over its parameters
        step: steps done
        notes: plain values to record
    """
    extra: dict[str, Any] = {f"{OPTIMIZER}{name}": array for name, array in optimizer.state().items()}
    extra |= {f"{TRAINING}step": step, f"{TRAINING}notes": json.dumps(notes or {})}
    write_archive(Path(path), model, extra)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and checks a checkpoint.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged or not a checkpoint.
    """
    path = Path(path)
    arrays = read_arrays(path)
    if f"{TRAINING}step" not in arrays:
        raise ValueError(f"{path}: is not a training checkpoint")
    config = Config.from_dict(parse_json(str(arrays.pop("config")), path))
    training = {name: arrays.pop(name) for name in list(arrays) if name.startswith(TRAINING)}
    state = {name.removeprefix(OPTIMIZER): each for name, each in training.items() if name.startswith(OPTIMIZER)}
    notes = parse_json(str(training[f"{TRAINING}notes"]), path)
    return Checkpoint(NumpyTransformerLM(config, arrays), state, int(training[f"{TRAINING}step"]), notes)


def newest_checkpoint(paths: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    """The undamaged checkpoint with the most steps among the existing files, and the errors of damaged ones."""
    good, problems = [], []
    for path in filter(Path.is_file, paths):
        try:
            good.append(read_checkpoint(path))
        except ValueError as error:
            problems.append(str(error))
    return max(good, key=lambda each: each.step, default=None), problems
