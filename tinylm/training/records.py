"""The run folder: where a run keeps its config, metrics, checkpoints, samples and, when it ends, its model.

runs/small/config.yaml  metrics.csv  samples.txt  curves.png  checkpoints/{last,best}.ckpt  model/
"""

import csv
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from tinylm.console import process_rank
from tinylm.errors import CannotCreateError, ConfigError, MissingInputError, notice
from tinylm.files import make_folder, write_text
from tinylm.locate import MANIFEST, command

RUN_FOLDER = "TINYLM_RUN_FOLDER"  # how rank 0 tells the processes that it starts


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run's files go, and what is told of it."""

    name: str | None = None
    """Name of the run folder. Default: the config's, numbered if taken."""
    dir: str = "runs"
    """The folder of all runs."""
    prompts: tuple[str, ...] | None = None
    """Prompts of the samples. Default: the beginning of a validation text."""
    sample_tokens: int = 160
    """Tokens of each sample; 0: no samples."""
    output: str | None = None
    """The file that `predict` writes. Default: predictions.jsonl in the run folder."""
    peak_flops: float | None = None
    """Peak FLOP/s of a device, for the MFU. Default: measured."""

    def __post_init__(self) -> None:
        if self.prompts is not None:
            object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise ConfigError(f"run.name must be a plain folder name, got {self.name!r}; run.dir is where it goes")
        if self.sample_tokens < 0:
            raise ConfigError(f"run.sample_tokens must not be negative, got {self.sample_tokens}")
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ConfigError(f"run.peak_flops must be positive, got {self.peak_flops}")


def new_run_folder(config: RunConfig, stem: str, words: Sequence[str]) -> Path:
    """Creates the folder of a new run: `<dir>/<name>`, or the first free `<dir>/<name>-2`, `-3` ...

    Processes that this one starts find the folder in the environment. Where something else starts them all (torchrun,
    SLURM) nobody could tell the others of a number, so the name is taken as it is and must be free.

    Args:
        config: name and place
        stem: the name where the config gives none
        words: of the command line, behind `tinylm`; with --resume it goes on with an earlier run

    Raises:
        CannotCreateError: if it cannot be made, or is there already and cannot be another.
    """
    if RUN_FOLDER in os.environ:
        return Path(os.environ[RUN_FOLDER])
    if started_from_outside():
        folder = Path(config.dir) / (config.name or stem)
        if process_rank() == 0 and not _claim(folder):
            _take_over(folder)
        return folder
    base = config.name or stem
    earlier = None
    for number in range(1, 10_000):
        folder = Path(config.dir) / (base if number == 1 else f"{base}-{number}")
        if not folder.exists() and _claim(folder):
            if earlier is not None:
                name = [] if earlier.name == base else ["--run.name", earlier.name]
                way_on = command(*words, *name, "--resume")
                state = "finished" if is_finished(earlier) else f"unfinished; to go on with it: {way_on}"
                notice(f"{earlier} exists ({state}); this run is {folder}")
            os.environ[RUN_FOLDER] = str(folder)
            return folder
        earlier = folder
    raise CannotCreateError(f"{config.dir}/{base}: too many runs of this name; choose another run.name")


def started_from_outside() -> bool:
    """Whether torchrun or SLURM's srun started this process as one of several."""
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        return True
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _claim(folder: Path) -> bool:
    """Creates the folder; False if another process was quicker."""
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be created ({error.strerror}); set run.dir") from error
    return True


def _take_over(folder: Path) -> None:
    """Starts a run afresh that was killed before its first checkpoint; a run that has one is not touched."""
    if list((folder / "checkpoints").glob("*.ckpt")):
        raise CannotCreateError(f"{folder}: exists; go on with it by --resume, or give another --run.name")
    notice(f"{folder} has no checkpoint yet: it starts afresh")
    (folder / "metrics.csv").unlink(missing_ok=True)


def existing_run_folder(config: RunConfig, stem: str) -> Path:
    """The folder of the run that the config names.

    Raises:
        MissingInputError: if there is none.
    """
    folder = Path(config.dir) / (config.name or stem)
    if not folder.is_dir():
        runs = sorted(path.parent.name for path in Path(config.dir).glob("*/config.yaml"))
        hint = f"; {config.dir} has {', '.join(runs[:8])}" if runs else ""
        raise MissingInputError(f"{folder}: no such run{hint}; give --run.name, or train it with fit")
    return folder


def discard_unused(folder: Path) -> None:
    """Removes the folder of a run that ended before its first step, so that its name is free again."""
    if not (folder / "metrics.csv").exists() and not list((folder / "checkpoints").glob("*.ckpt")):
        shutil.rmtree(folder, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end and left its model."""
    return (folder / "model" / MANIFEST).is_file()


class MetricsCSV(Logger):
    """Lightning's logger for `metrics.csv`: one row a call, one column a metric, `step` first.

    Rows are appended, so a resumed run goes on in the same file; `truncate` first drops what lies beyond its step.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self._columns = self._read()[0] if self.path.is_file() else ["step"]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Nothing: a run is its folder."""
        return ""

    @property
    def root_dir(self) -> str:
        """The folder of the file."""
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCSV":
        """Itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row; a metric never seen before adds a column, and the file is written anew."""
        row = {"step": str(step)} | {
            name: f"{float(value):.9g}" for name, value in metrics.items() if name not in ("step", "epoch")
        }
        if new := [name for name in row if name not in self._columns]:
            rows = self._read()[1] if self.path.is_file() else []
            self._columns += new
            self._write([*rows, row])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drops the rows beyond a step, atomically."""
        if self.path.is_file():
            self._write([row for row in self._read()[1] if int(row["step"]) <= step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values()]  # a kill may have cut the last one short
            return list(reader.fieldnames or ["step"]), rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
