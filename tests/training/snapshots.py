"""Copies of a run folder as a kill would leave it, taken inside this process at every step, validation and save."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from tinylm.runs.metrics import read_metrics


class Snapshots(pl.Callback):
    """Copies the run folder whenever its files have changed, and around every save."""

    def __init__(self, run: Path, out: Path) -> None:
        self.run, self.out = run, out
        self.found: dict[str, Path] = {}

    def take(self, name: str) -> None:
        if not self.run.is_dir():
            return
        files = sorted(path for path in self.run.rglob("*") if path.is_file())
        content = b"".join(str(path).encode() + path.read_bytes() for path in files)
        key = hashlib.sha256(content).hexdigest()
        if key not in self.found:
            self.found[key] = self.out / f"{len(self.found):03}-{name}"
            shutil.copytree(self.run, self.found[key])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        save = trainer.save_checkpoint

        def saving(path: Any, *arguments: Any, **options: Any) -> None:
            self.take(f"before-{Path(path).stem}-{trainer.global_step}")
            save(path, *arguments, **options)
            self.take(f"after-{Path(path).stem}-{trainer.global_step}")

        trainer.save_checkpoint = saving  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.take(f"step-{trainer.global_step}")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.take(f"validation-{trainer.global_step}")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.take(f"validated-{trainer.global_step}")


def differences(ours: Path, whole: Path) -> list[str]:
    """The files and states in which a run differs from one that was never stopped; perf/ metrics do not count."""
    found = []
    for name in ("last", "best"):
        pair = [torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for folder in (ours, whole)]
        found += [f"{name}.ckpt: {path}" for path in compare(*map(comparable, pair))]
    one, other = (read_metrics(folder / "metrics.csv") for folder in (ours, whole))
    names = {name for name in one | other if not name.startswith("perf/")}
    found += [f"metrics.csv: {name}" for name in sorted(names) if one.get(name) != other.get(name)]
    files = ["samples.txt", "model/model.safetensors", "model/tinylm.json"]
    found += [name for name in files if (ours / name).read_bytes() != (whole / name).read_bytes()]
    return found + [str(path) for path in ours.rglob(".tmp-*")]


def comparable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what may differ: folders, times, and Lightning's counts that it does not use."""
    checkpoint = dict(checkpoint)
    checkpoint.pop("loops", None)
    checkpoint.pop("tinylm_config")  # has the folder of the run
    states = {name: dict(state) for name, state in checkpoint["callbacks"].items()}
    for state in states.values():
        for name in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "best_k_models"):
            state.pop(name, None)
    return checkpoint | {"callbacks": states}


def compare(ours: Any, whole: Any, path: str = "") -> list[str]:
    """Paths of all leaves that are not equal to the last bit."""
    if isinstance(ours, dict) and isinstance(whole, dict):
        missing = [f"{path}/{key}" for key in ours.keys() ^ whole.keys()]
        shared = [key for key in ours if key in whole]
        return missing + [each for key in shared for each in compare(ours[key], whole[key], f"{path}/{key}")]
    if isinstance(ours, list | tuple) and isinstance(whole, list | tuple) and len(ours) == len(whole):
        return [each for i, pair in enumerate(zip(ours, whole, strict=True)) for each in compare(*pair, f"{path}/{i}")]
    tensors = isinstance(ours, torch.Tensor) and isinstance(whole, torch.Tensor)
    return [] if (torch.equal(ours, whole) if tensors else ours == whole) else [path]
