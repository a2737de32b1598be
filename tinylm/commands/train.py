"""Trains or evaluates a model: `tinylm fit|validate|test|predict`. The work is done by `tinylm.training.cli`.

Here is what can be done before PyTorch and Lightning are imported, which takes seconds: help, finding the configs, and
saying so.
"""

import sys

from tinylm.commands.fit_help import help_text
from tinylm.console import process_rank
from tinylm.errors import notice
from tinylm.locate import command, find_config


def run(arguments: list[str]) -> int:
    """Does what the first word says.

    Returns:
        the exit code
    """
    name, *words = arguments
    if wants_help(words):
        print(help_text(name))
        return 0
    if "--trainer.help" in words:
        from tinylm.training.standin import trainer_help

        print(trainer_help())
        return 0
    words = announced_configs(words, default="small" if name == "fit" else None)
    sys.argv = [sys.argv[0], name, *words]  # which Lightning hands to the processes that it starts

    from tinylm.training.cli import main

    return main()


def wants_help(words: list[str]) -> bool:
    """Whether help is asked for."""
    return "--help" in words or "-h" in words


def announced_configs(words: list[str], default: str | None) -> list[str]:
    """Finds the configs of a command line and says where they are; puts one there where there is none.

    Args:
        words: options of `fit`
        default: the config to take where none is given; None: none

    Returns:
        the words, with a config

    Raises:
        MissingInputError: for a config that is not there.
    """
    paths = [str(find_config(config)) for config in given_configs(words)]
    if not paths and default is not None:
        words = ["--config", default, *words]
        paths = [f"{find_config(default)} (none was given; `{command('configs')}` lists all)"]
    if process_rank() == 0 and paths:
        notice(f"config: {', '.join(paths)}")
    return words


def given_configs(words: list[str]) -> list[str]:
    """The values of all `-c` and `--config`.

    >>> given_configs(["-c", "small", "--data.corpus", "my.txt", "--config=overlays/bf16.yaml"])
    ['small', 'overlays/bf16.yaml']
    """
    values = zip(words, [*words[1:], ""], strict=False)
    found = [
        after if word in ("-c", "--config") else word.partition("=")[2]
        for word, after in values
        if word in ("-c", "--config") or word.startswith(("-c=", "--config="))
    ]
    return [value for value in found if value]
