"""Whole classes for `model` and `data`, named by `class_path` in a config or on the command line."""

import importlib
import sys
from pathlib import Path
from typing import Any

from tinylm.checks import LINKED
from tinylm.chosen import chosen_path
from tinylm.errors import ConfigError, did_you_mean, first_line
from tinylm.training.options import TRUSTED, denied, trusted_modules


def chosen_class(part: str, default: type, words: list[str], kind: type | None = None) -> tuple[type, str | None]:
    """The class of a part, imported if the user trusts its module, and the class path by which it was chosen.

    Args:
        part: `model` or `data`
        default: tinylm's own class, with None for its path
        words: the command line, whose configs are read
        kind: the class must be a subclass of this one. Default: of `default`

    Raises:
        ConfigError: if the class is not trusted, cannot be imported, or is no subclass of `kind`.
    """
    found = chosen_path(part, words)
    if found is None:
        return default, None
    path, config = found
    source = f"{config}: " if config else ""
    try:
        chosen = import_class(path, trusted_modules(words), config)
        wanted = kind or default
        if not (isinstance(chosen, type) and issubclass(chosen, wanted)):
            raise ConfigError(f"{path} is no subclass of {wanted.__module__}.{wanted.__name__}; derive it from that")
    except ConfigError as error:
        raise ConfigError(f"{source}{part}.class_path: {error}") from error
    return chosen, path


def check_arguments(parser: Any, chosen: dict[str, str]) -> None:
    """Refuses a class whose constructor lacks the arguments that link model and data.

    Args:
        parser: a parser with the options of model and data
        chosen: class paths of the parts whose class the user names
    """
    options = {str(action.dest) for action in parser._actions}
    for name in LINKED:
        part, _, argument = name.partition(".")
        if part in chosen and name not in options:
            remedy = "take **options and hand them to super().__init__"
            first = argument.partition(".")[0]
            raise ConfigError(f"{part}.class_path: {chosen[part]} has no argument {first}; {remedy}")


def import_class(path: str, trusted: list[str], config: Path | None = None) -> object:
    """Imports what a class path names, from the folder of its config, the working folder, or any installed package.

    Raises:
        ConfigError: if its module is not trusted, or there is no such class.
    """
    module, _, name = path.rpartition(".")
    if not module or not all(word.isidentifier() for word in path.split(".")):
        raise ConfigError(f"{path!r} must be a module and a class, as in mine.Mine")
    if path.split(".")[0] not in (*TRUSTED, *trusted):
        raise ConfigError(denied(path, path.split(".")[0]))
    for folder in (config.resolve().parent if config else Path.cwd(), Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{module} cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    if not hasattr(found, name):
        hint = did_you_mean(name, [each for each in vars(found) if not each.startswith("_")])
        raise ConfigError(f"{module} has no class {name}{hint}")
    return getattr(found, name)
