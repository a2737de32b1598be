"""Histograms and artifacts of a W&B run, and the command that uploads an offline one."""

import os
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinylm.files import make_folder, read_json
from tinylm.locate import MANIFEST
from tinylm.runs.metrics import read_metrics

EMPTY_BYTES = 7  # of a log that was killed before its first record
BINS = 64


def histogram(values: torch.Tensor) -> Any:
    """A `wandb.Histogram` of the finite values of a tensor, in 64 equal bins from the smallest to the largest."""
    import wandb

    flat = values.detach().flatten().float()
    flat = flat[flat.isfinite()]
    low, high = (value.item() for value in flat.aminmax()) if flat.numel() else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5  # as NumPy does
    counts = torch.histc(flat, BINS, low, high)
    return wandb.Histogram(np_histogram=(counts.cpu().numpy(), torch.linspace(low, high, BINS + 1).numpy()))


def log_artifact(
    run: Any, kind: str, files: Sequence[Path], staging: Path, aliases: list[str], metadata: dict[str, Any]
) -> None:
    """Logs files as the next version of an artifact.

    They are linked into the staging folder, not copied: a link keeps the content until it is uploaded, even if the file
    is replaced, and takes no space. File systems without links get a copy.

    Args:
        run: the W&B run
        kind: type of the artifact, and the first word of its name
        files: the files
        staging: folder for the links, of which each version has its own subfolder
        aliases: aliases of this version
        metadata: metadata of the artifact
    """
    import wandb

    folder = make_folder(staging / f"{kind}-{uuid.uuid4().hex[:8]}")
    for file in files:
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)
    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind, metadata=metadata)
    artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", *aliases])


def sync_command(folder: Path, run_id: str) -> str:
    """The command that uploads all offline folders of a run, oldest first."""
    *earlier, latest = sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))  # the latest is being written
    logs = [*(log for log in earlier if log.stat().st_size > EMPTY_BYTES), latest]
    return shlex.join(["wandb", "sync", *(str(log.parent) for log in logs)])


def model_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a finished run's model: its config, its step, and the metrics at that step."""
    manifest = read_json(folder / "model" / MANIFEST)
    step = manifest["info"].get("step")
    figures = {}
    if (folder / "metrics.csv").is_file():
        for name, (steps, values) in read_metrics(folder / "metrics.csv").items():
            if name.startswith("val/") and step in steps:
                figures[name] = dict(zip(steps, values, strict=True))[step]
    return {"model": manifest["model"], **manifest["info"], **figures}
