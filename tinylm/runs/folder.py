"""The run folder, which holds the config, metrics, checkpoints, samples and, at the end, the model of a run.

runs/small/config.yaml  metrics.csv  samples.txt  curves.png  checkpoints/{last,best}.ckpt  model/
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylm.console import process_rank
from tinylm.errors import CannotCreateError, ConfigError, MissingInputError, notice
from tinylm.files import make_folder
from tinylm.locate import MANIFEST, command

RUN_FOLDER = "TINYLM_RUN_FOLDER"  # tells the processes that rank 0 starts


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, place and output of a run."""

    name: str | None = None
    """Name of the run folder. Default: the config's, numbered if taken."""
    dir: str = "runs"
    """Folder of all runs."""
    prompts: tuple[str, ...] | None = None
    """Prompts of the samples. Default: the first words of a validation text."""
    sample_tokens: int = 160
    """Length of each sample in tokens; 0 = no samples."""
    output: str | None = None
    """predict: the JSONL file to write. Default: predictions.jsonl in the run folder."""
    peak_flops: float | None = None
    """Peak FLOP/s of one device, for the MFU. Default: measured."""
    timeout: float = 300.0
    """Seconds to wait for a missing or stalled rank."""

    def __post_init__(self) -> None:
        if self.prompts is not None:
            object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise ConfigError(f"run.name must be a plain folder name, got {self.name!r}; set the parent with run.dir")
        if self.sample_tokens < 0:
            raise ConfigError(f"run.sample_tokens must not be negative, got {self.sample_tokens}")
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ConfigError(f"run.peak_flops must be positive, got {self.peak_flops}")
        if not 1 <= self.timeout < 1e7:
            raise ConfigError(f"run.timeout must be at least 1 second and below 1e7, got {self.timeout}")


def new_run_folder(config: RunConfig, stem: str, words: Sequence[str]) -> Path:
    """Creates the folder of a new run, `<dir>/<name>`, or the first free one of `<dir>/<name>-2`, `-3`, ...

    Processes started by this one find the folder in the environment. Processes started by torchrun or SLURM cannot be
    told of a number, so the name is used unchanged and must be free.

    Args:
        config: name and place
        stem: name if the config gives none
        words: command line after `tinylm`, for the hint on resuming

    Raises:
        CannotCreateError: if the folder cannot be created, or exists where it must not.
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
                resume = command(*words, *name, "--resume")
                state = "finished" if is_finished(earlier) else f"unfinished; to resume it: {resume}"
                notice(f"{earlier} exists ({state}); this run is {folder}")
            os.environ[RUN_FOLDER] = str(folder)
            return folder
        earlier = folder
    raise CannotCreateError(f"{config.dir}/{base}: too many runs of this name; choose another run.name")


def started_from_outside() -> bool:
    """Whether torchrun or a batch job of SLURM started this process, perhaps as one of several, perhaps again."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning has it
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or ("SLURM_PROCID" in os.environ and (several or not interactive))


def _claim(folder: Path) -> bool:
    """Creates the folder; False if it exists."""
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be created ({error.strerror}); set run.dir") from error
    return True


def _take_over(folder: Path) -> None:
    """Reuses the folder of a run that was killed before its first checkpoint; refuses one with checkpoints."""
    if list((folder / "checkpoints").glob("*.ckpt")):
        raise CannotCreateError(f"{folder}: exists; resume it with --resume, or choose another --run.name")
    notice(f"{folder} has no checkpoint yet: starting over")
    (folder / "metrics.csv").unlink(missing_ok=True)


def existing_run_folder(config: RunConfig, stem: str) -> Path:
    """The folder of the existing run that the config names.

    Raises:
        MissingInputError: if there is none.
    """
    folder = Path(config.dir) / (config.name or stem)
    if not folder.is_dir():
        runs = sorted(path.parent.name for path in Path(config.dir).glob("*/config.yaml"))
        hint = f"; {config.dir} has {', '.join(runs[:8])}" if runs else ""
        raise MissingInputError(f"{folder}: no such run{hint}; set --run.name, or train it with fit")
    return folder


def discard_unused(folder: Path) -> None:
    """Removes the folder of a run that ended before its first step, which frees its name."""
    if not (folder / "metrics.csv").exists() and not list((folder / "checkpoints").glob("*.ckpt")):
        shutil.rmtree(folder, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Whether a run has ended and written its model."""
    return (folder / "model" / MANIFEST).is_file()
