"""The checkpoint from which a run of the NumPy twin is resumed: the newest undamaged one, if it is of this run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinylm.data import TextDataModule
from tinylm.errors import ConfigError, DataError, notice
from tinylm.model import ModelConfig
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.reference.checkpoint import Checkpoint, newest_checkpoint
from tinylm.runs.folder import is_finished
from tinylm.training.earlier import text_seed_remedy
from tinylm.training.restoring import OTHER_ORDER, changed_text


def find_checkpoint(folder: Path, paths: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, or None before the first one, and the problems of the others.

    Raises:
        DataError: if all are damaged, or the run has a model but no checkpoint.
    """
    found, problems = newest_checkpoint(paths)
    if found is None and problems:
        raise DataError("; ".join(problems))
    if found is None and is_finished(folder):
        raise DataError(f"{folder}: has a model but no checkpoint to resume from; choose another run.name")
    if found is None:
        notice(f"{folder} has no checkpoint yet: starting from the first step")
        return None, []
    for problem in problems:
        notice(f"warning: {problem}; resuming from step {found.step:,}")
    return found, problems


def check_checkpoint(found: Checkpoint, network: ModelConfig, data: TextDataModule, optimizer: str) -> None:
    """Refuses a checkpoint with another architecture, tokenizer, text or kind of optimizer.

    Raises:
        ConfigError: naming the field, with both values.
    """
    theirs, ours = found.model.config.to_dict(), network.to_dict()
    pairs = [(name, theirs[name], ours[name]) for name in theirs if name not in WITHOUT_WEIGHTS]
    pairs.append(("tokenizer", found.notes["tokenizer"][:12], data.tokenizer.sha256[:12]))
    pairs.append(("optimizer.name", found.notes["optimizer"], optimizer))
    for name, before, now in pairs:
        if before != now:
            raise ConfigError(f"{name}: checkpoint {before}, config {now}")
    _check_text(found.notes, data)
    if found.notes.get("order", 1) != data.order.version:
        notice(OTHER_ORDER)


def _check_text(notes: dict[str, Any], data: TextDataModule) -> None:
    """Refuses another text than that of a checkpoint with these notes."""
    ours = data.fingerprint
    theirs = notes.get("text", ours)
    if theirs == ours:
        return
    name = changed_text(data, notes.get("sources", {})) if data.fingerprints else ""
    remedy = text_seed_remedy(notes["config"], data.text_seed)
    problem = f"{f'text {name}'.strip()}: checkpoint {theirs[:12]}, config {ours[:12]}"
    raise ConfigError("; ".join(filter(None, (problem, remedy))))
