"""The run folder and the checkpoint of a command, and the base model of a finetuning run."""

import sys
from pathlib import Path
from typing import Any

from tinylm.bundle import TOKENIZER
from tinylm.console import process_rank
from tinylm.data.template import find_template, stop_after_turns
from tinylm.errors import ConfigError, MissingInputError
from tinylm.runs.folder import Claim, RunConfig, existing_run_folder, new_run_folder
from tinylm.tokenizer import Tokenizer
from tinylm.training.earlier import recorded_seed
from tinylm.training.foreign import find_base
from tinylm.training.own_data_options import OwnClass
from tinylm.training.resume import ResumePoint, find_resume_point
from tinylm.training.start import Start

NAMED = ("best", "last")  # Lightning's words for checkpoints of the run


def choose_folder(command: str, config: Any, run: RunConfig) -> tuple[Path, Claim | None]:
    """The run folder, and the claim of a process that writes it.

    Args:
        command: fit, validate, test or predict
        config: its parsed options
        run: those under `run`
    """
    first = Path(str(config.config[0])) if config.config else Path("run")
    if command == "fit" and not config.resume:
        return new_run_folder(run, first.stem)
    if command == "fit":
        folder = existing_run_folder(run, first.stem)
        return folder, Claim(folder) if process_rank() == 0 else None
    if config.ckpt_path and config.ckpt_path not in NAMED and not _is_run_config(config):
        return Path(config.ckpt_path).parent, None  # no run is needed
    if run.name is None and _is_run_config(config):
        return first.parent, None
    return existing_run_folder(run, first.stem), None


def choose_checkpoint(command: str, config: Any, folder: Path) -> ResumePoint:
    """Sets `ckpt_path`, and returns where training continues; evaluation needs a checkpoint, never random weights.

    A resumed run that was killed before its first checkpoint starts again.
    """
    start = ResumePoint()
    if command == "fit" and config.resume:
        if is_typed("--ckpt_path"):
            raise ConfigError("--ckpt_path: --resume takes the run's newest checkpoint; leave out one of the two")
        start = find_resume_point(folder)
        if start.path is not None:
            config.ckpt_path = str(start.path)
        if OwnClass.path is None and config.data.seed is None:  # the run keeps its order
            config.data.seed = recorded_seed(folder)
    elif command != "fit":
        best = folder / "checkpoints" / "best.ckpt"
        validated = config.trainer.limit_val_batches != 0  # else the best is from before the run was resumed
        if config.ckpt_path in NAMED:
            config.ckpt_path = str(folder / "checkpoints" / f"{config.ckpt_path}.ckpt")
        elif not config.ckpt_path or _is_run_config(config):
            config.ckpt_path = str(best if best.is_file() and validated else _newest_checkpoint(folder))
        if "verbose" in config:
            config.verbose = False
    if config.ckpt_path and not Path(config.ckpt_path).is_file():
        remedy = "; give its file, or go on with a run by --resume" if config.ckpt_path in NAMED else ""
        raise MissingInputError(f"--ckpt_path {config.ckpt_path}: no such checkpoint{remedy}")
    return start


def _newest_checkpoint(folder: Path) -> Path:
    path = find_resume_point(folder).path
    if path is None:
        raise MissingInputError(f"{folder}: has no checkpoint yet")
    return path


def is_typed(option: str) -> bool:
    """Whether an option is given on the command line itself, not by a config."""
    return any(word.split("=")[0] == option for word in sys.argv)


def _is_run_config(config: Any) -> bool:
    """Whether the first config is that of a run, whose `ckpt_path` says from which checkpoint the run began."""
    paths = [Path(str(path)) for path in config.config or []]
    of_run = bool(paths) and paths[0].name == "config.yaml" and (paths[0].parent / "checkpoints").is_dir()
    return of_run and (config.ckpt_path in NAMED or not is_typed("--ckpt_path"))


def use_base_model(config: Any, folder: Path, resumes: bool) -> None:
    """Takes architecture and tokenizer of the model of `model.init_from`.

    Args:
        config: the parsed options, changed in place
        folder: the run folder
        resumes: whether a checkpoint of the run is continued, so that the folder has the tokenizer
    """
    config.model.init_from = str(find_base(config.model.init_from))
    start = Start(config.model.init_from)
    for name, value in start.architecture(config.model.network.as_dict()).items():
        if name != "vocab_size":
            config.model.network[name] = value
    if OwnClass.path is not None:
        return
    config.data.max_seq_len = config.model.network.max_seq_len
    if config.data.tokenizer == "char":  # the default
        config.data.tokenizer = str(folder / TOKENIZER)
        if not resumes:
            _tokenizer_of(start, config.data).save(config.data.tokenizer, overwrite=True)


def _tokenizer_of(start: Start, data: Any) -> Tokenizer:
    """The base model's tokenizer with what the template of the pairs needs."""
    if not data.pairs:
        return start.tokenizer(())
    template = find_template(data.template, start.bundle.tokenizer)
    return stop_after_turns(start.tokenizer(template.special_tokens), template)
