"""The run folder, which holds the config, metrics, checkpoints, samples and, at the end, the model of a run.

runs/small/config.yaml  run.json  metrics.csv  samples.txt  curves.png  checkpoints/{last,best}.ckpt  model/
run.json says which code, versions, data and machine made the run, and run.diff has local changes of the code.
"""

import contextlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import filelock

from tinylm.console import process_rank
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError, notice
from tinylm.files import TEMPORARY, make_folder, read_json, write_json
from tinylm.locate import MANIFEST, TOKENIZER, command

RUN_FOLDER = "TINYLM_RUN_FOLDER"  # environment variable for the processes that rank 0 starts
LOCK, WRITER = ".lock", ".writer"  # in the run folder: the lock of its writer, and who that is
RECORD, DIFF = "run.json", re.compile(r"run(?:-\d+)?\.diff")  # see provenance.py
STRAGGLERS = 10.0  # seconds to wait for the lock of a process that has been killed


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, place and output of a run."""

    name: str | None = None
    """Run folder. Default: the config's name, numbered if used."""
    dir: str = "runs"
    """Folder of all runs."""
    prompts: tuple[str, ...] | str | None = None
    """Prompts of the samples. Default: from a validation text."""
    sample_tokens: int = 160
    """Length of each sample in tokens; 0 = no samples."""
    output: str | None = None
    """predict: the JSONL file. Default: in the run folder."""
    seconds: float | None = None
    """Time for the whole run, to which its steps are adjusted."""
    peak_flops: float | None = None
    """Peak FLOP/s of one device, for the MFU. Default: measured."""
    timeout: float = 300.0
    """Seconds to wait for a missing or stalled rank."""

    def __post_init__(self) -> None:
        if self.prompts is not None:
            prompts = (self.prompts,) if isinstance(self.prompts, str) else tuple(self.prompts)
            object.__setattr__(self, "prompts", prompts)
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise ConfigError(f"run.name must be a plain folder name, got {self.name!r}; set the parent with run.dir")
        if self.sample_tokens < 0:
            raise ConfigError(f"run.sample_tokens must not be negative, got {self.sample_tokens}")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigError(f"run.seconds must be positive, got {self.seconds}")
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ConfigError(f"run.peak_flops must be positive, got {self.peak_flops}")
        if not 1 <= self.timeout < 1e7:
            raise ConfigError(f"run.timeout must be at least 1 second and below 1e7, got {self.timeout}")


class Claim:
    """A run folder whose only writer is this process, until `release`.

    The operating system releases the lock of a process that dies, so a killed writer blocks nobody.

    Args:
        folder: an existing folder
        made: whether this process has created it

    Raises:
        CannotCreateError: if another process writes there, or the folder is read-only.
    """

    def __init__(self, folder: Path, made: bool = False) -> None:
        self.folder, self.made = folder, made
        self._lock = filelock.FileLock(folder / LOCK)
        deadline = time.monotonic() + STRAGGLERS
        while not self._acquire():
            writer = self._writer()
            if writer is None or _alive(*writer) or time.monotonic() > deadline:
                who = "another process" if writer is None else f"process {writer[0]} on {writer[1]}"
                raise CannotCreateError(f"{folder}: {who} is writing this run; wait for it, or choose another run.name")
            time.sleep(0.1)  # the loaders of a killed process hold its lock for a few seconds more
        write_json(folder / WRITER, {"process": os.getpid(), "host": platform.node()})

    def _acquire(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        except NotImplementedError:
            notice(f"{self.folder}: this file system has no locks; make sure that no other process writes this run")
        except OSError as error:
            raise CannotCreateError(f"{self.folder}: cannot be written ({error.strerror}); set run.dir") from error
        return True

    def _writer(self) -> tuple[int, str] | None:
        try:
            writer = read_json(self.folder / WRITER)
            return int(writer["process"]), str(writer["host"])
        except (OSError, DataError, KeyError, TypeError, ValueError):
            return None

    def release(self) -> None:
        """Releases the folder, and removes it if this process has made it and nothing was trained."""
        with contextlib.suppress(OSError):
            (self.folder / WRITER).unlink()
        used = (self.folder / "metrics.csv").exists() or has_checkpoint(self.folder) or is_finished(self.folder)
        if self.made and not used:
            diffs = [path.name for path in self.folder.iterdir() if DIFF.fullmatch(path.name)]
            for name in (LOCK, "config.yaml", RECORD, *diffs, TOKENIZER, "wandb.json"):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "wandb", ignore_errors=True)  # W&B's logs of the failed start
            for empty in (self.folder / "checkpoints", self.folder):
                with contextlib.suppress(OSError):  # something else is in it
                    empty.rmdir()
        self._lock.release()


def _alive(process: int, host: str) -> bool:
    """Whether a process runs; True for a process of another host, which cannot be asked."""
    if host != platform.node() or os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def resume_command(name: str, folder: Path, trust: Iterable[str] = ()) -> str:
    """The command line that resumes a run of `fit` or `train-numpy` by its own config, which may name modules."""
    return command(name, "--resume", folder, *(word for module in trust for word in ("--trust", module)))


def new_run_folder(config: RunConfig, stem: str, name: str = "fit") -> tuple[Path, Claim | None]:
    """Creates the folder of a new run, `<dir>/<name>`, or the first free one of `<dir>/<name>-2`, `-3`, ...

    Processes started by this one find the folder in the environment. Processes started by torchrun or SLURM
    cannot learn a number, so the name is used unchanged and must be free. Only rank 0 claims the folder.

    Args:
        config: name and place
        stem: name if the config gives none
        name: command that trains, for the hint on resuming

    Raises:
        CannotCreateError: if the folder cannot be created, or exists although it must be new.
        ConfigError: if the user is inside a folder of runs.
    """
    if RUN_FOLDER in os.environ:
        return Path(os.environ[RUN_FOLDER]), None
    check_place(config.dir)
    if started_from_outside():
        folder = Path(config.dir) / (config.name or stem)
        return folder, _create_or_take_over(folder) if process_rank() == 0 else None
    base = config.name or stem
    earlier = None
    for number in range(1, 10_000):
        folder = Path(config.dir) / (base if number == 1 else f"{base}-{number}")
        if not folder.exists() and _create(folder):
            if earlier is not None:
                resume = f" (unfinished; to resume it: {resume_command(name, earlier)})"
                state = resume if (earlier / "config.yaml").is_file() else ""
                state = " (finished)" if is_finished(earlier) else state
                notice(f"{earlier} exists{state}; this run is {folder}")
            os.environ[RUN_FOLDER] = str(folder)
            return folder, Claim(folder, made=True)
        earlier = folder
    raise CannotCreateError(f"{config.dir}/{base}: too many runs of this name; choose another run.name")


def started_from_outside() -> bool:
    """Whether torchrun or a batch job of SLURM started this process, perhaps as one of several, perhaps again."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning has it
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or ("SLURM_PROCID" in os.environ and (several or not interactive))


def check_place(folder: str) -> None:
    """Refuses a folder of runs inside a folder of runs, or inside a run: the user is in the wrong folder.

    Raises:
        ConfigError: naming the folder to go to.
    """
    here = Path.cwd()
    inside = [place for place in (here, here.parent) if place.name == folder and any(place.glob("*/checkpoints"))]
    if inside:
        up = os.path.relpath(inside[0].parent)
        raise ConfigError(f"run.dir: the current folder is inside {inside[0]}; cd {up} first, or give run.dir")


def _create(folder: Path) -> bool:
    """Creates the folder; False if it exists."""
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be created ({error.strerror}); set run.dir") from error
    return True


def _create_or_take_over(folder: Path) -> Claim:
    """Creates the folder, or reuses the folder of a run killed before its first checkpoint; refuses any other."""
    if _create(folder):
        return Claim(folder, made=True)
    begun = {"config.yaml", RECORD, "metrics.csv", "samples.txt", "checkpoints", TOKENIZER, LOCK, WRITER}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    names = {name for name in names if not name.startswith(TEMPORARY) and not DIFF.fullmatch(name)}
    if has_checkpoint(folder) or not names <= begun:
        raise CannotCreateError(f"{folder}: exists; resume it with --resume, or choose another --run.name")
    notice(f"{folder} has no checkpoint yet: starting over")
    return Claim(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a checkpoint."""
    return any(path.suffix in (".ckpt", ".npz") for path in (folder / "checkpoints").glob("*"))


def existing_run_folder(config: RunConfig, stem: str) -> Path:
    """The folder of the existing run that the config names.

    Raises:
        MissingInputError: if there is none.
    """
    folder = Path(config.dir) / (config.name or stem)
    if not folder.is_dir():
        check_place(config.dir)
        runs = sorted(path.parent.name for path in Path(config.dir).glob("*/config.yaml"))
        hint = f"; {config.dir} has {', '.join(runs[:8])}" if runs else ""
        raise MissingInputError(f"{folder}: no such run{hint}; set --run.name, or train it with fit")
    return folder


def is_finished(folder: Path) -> bool:
    """Whether a run has ended and written its model."""
    return (folder / "model" / MANIFEST).is_file()
