"""Copies of a run folder as a kill would leave it, taken inside this process at every step, validation and save."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from tests.states import compared, content, without


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
    """Everything in which a run differs from one that was never stopped."""
    return list(compared(files(ours, str(whole)), files(whole, str(ours))))


def files(run: Path, other: str) -> dict[str, Any]:
    """The content of the files of a run without its folder and another, and without the config, which has it."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"):
        found[str(path.relative_to(run))] = each = without(without(content(path), str(run)), other)
        if path.suffix == ".ckpt":
            del each["tinylm_config"]
    return found
