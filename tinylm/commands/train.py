"""Trains or evaluates a model: `tinylm fit|validate|test|predict`.

This file prints help, finds the configs and checks the options before PyTorch and Lightning are imported, which takes
seconds; `tinylm.training.cli` does the rest.
"""

import itertools
import sys
from importlib.util import find_spec
from pathlib import Path

from tinylm.chosen import given_configs
from tinylm.commands.fit_auto import resolve
from tinylm.commands.fit_check import check_options
from tinylm.commands.fit_help import help_text
from tinylm.console import process_rank
from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.locate import command, find_config
from tinylm.runs.folder import check_place

OF_TRAINING = (  # options that only `fit` uses, or the beginnings of their names
    "run.prompts", "run.sample_tokens", "run.seconds", "run.peak_flops", "model.optimizer", "model.schedule",
    "model.objective", "trainer.max_", "trainer.min_", "trainer.gradient_clip_", "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
    "trainer.log_every_n_steps", "data.train_tokens", "data.weights",
)  # fmt: skip
UNUSED = {"fit": ("run.output",), "predict": OF_TRAINING} | dict.fromkeys(
    ["validate", "test"], (*OF_TRAINING, "run.output")
)


def run(arguments: list[str]) -> int:
    """Runs the command and returns the exit code."""
    name, *words = arguments
    if wants_help(words):
        print(help_text(name))
        return 0
    if "--trainer.help" in words:
        from tinylm.training.parser import trainer_help

        print(trainer_help())
        return 0
    for word in words:
        if word.startswith(
            tuple(f"--{option}" for option in UNUSED[name])
        ):  # in a config it may be for another command
            raise ConfigError(f"{word.partition('=')[0]}: does not work with {name}; leave it out")
    words = resumed_run(resolve(words), default="small") if name == "fit" else words
    words = announced_configs(words, default="small" if name == "fit" else None)
    if not given_configs(words) and not any(word.startswith("--ckpt_path") for word in words):
        raise ConfigError("-c: missing; give the config of the run, as in -c small or -c runs/small/config.yaml")
    if process_rank() == 0:
        check_options(name, [word for word in words if word != "--debug"])
    _name_main_module()
    sys.argv = [sys.argv[0], name, *words]  # passed on by Lightning to the processes that it starts

    from tinylm.training.cli import main

    return main()


def _name_main_module() -> None:
    """Names the main module: without a name, Lightning cannot start tinylm.exe on Windows for a further device."""
    main = sys.modules["__main__"]
    if getattr(getattr(main, "__spec__", None), "name", "") == "__main__":
        main.__spec__ = find_spec("tinylm.__main__")


def wants_help(words: list[str]) -> bool:
    """Whether help is requested."""
    return "--help" in words or "-h" in words


def announced_configs(words: list[str], default: str | None) -> list[str]:
    """Finds the configs of a command line and prints their paths; adds the default if there is none.

    Args:
        words: options of `fit`
        default: config to add. None: none

    Returns:
        the words, with a config

    Raises:
        MissingInputError: for a missing config.
    """
    paths = [str(find_config(config)) for config in given_configs(words)]
    if not paths and default is not None:
        words = ["--config", default, *words]
        paths = [f"{find_config(default)} (none was given; `{command('configs')}` lists all)"]
    if process_rank() == 0 and paths:
        notice(f"config: {', '.join(paths)}")
    return words


def resumed_run(words: list[str], default: str) -> list[str]:
    """Completes `--resume RUN`, or `--resume` without a config, by the config, folder and name of the run.

    Args:
        words: options of `fit` or `train-numpy`
        default: name of the run if none is given

    Returns:
        the words, in which `--resume` has no value

    Raises:
        MissingInputError: if there is no such run.
    """
    names = [word for word in words if word.split("=")[0] == "--resume"]
    if not names:
        return words
    place = words.index(names[-1])
    value = names[-1].partition("=")[2] or next((word for word in words[place + 1 :][:1] if word[:1] != "-"), "")
    others = [word for i, word in enumerate(words) if word not in names and not (i == place + 1 and word == value)]
    if given_configs(others) and not value:
        return [*others, "--resume"]
    runs = Path(given(others, "--run.dir") or "runs")
    name = value or given(others, "--run.name") or default
    path_given = bool(value) and (Path(value, "config.yaml").is_file() or "/" in value)
    folder = Path(value) if path_given else runs / name
    if not (folder / "config.yaml").is_file():
        check_place(str(runs))
        found = sorted(path.parent.name for path in folder.parent.glob("*/config.yaml"))
        hint = f"; {folder.parent} has {', '.join(found[:8])}" if found else ""
        raise MissingInputError(f"--resume {folder}: no such run{hint}")
    run = ["--config", str(folder / "config.yaml"), "--run.dir", str(folder.parent), "--run.name", folder.name]
    return [*run, *others, "--resume"]


def given(words: list[str], option: str) -> str | None:
    """The last value of an option; None if it is not given."""
    values = [following for word, following in itertools.pairwise(words) if word == option]
    values += [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return values[-1] if values else None
