"""One-line errors about options and config files, with "did you mean". Slow imports are avoided."""

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from tinylm.checks import FOREIGN_NAMES
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.locate import find_config
from tinylm.safe_yaml import read_yaml


class Given:
    """The command line that is being parsed, for error messages."""

    words: ClassVar[list[str]] = []
    files: ClassVar[list[Path]] = []  # the configs read so far


# --- config files


def read_config(path: Path) -> dict[str, Any]:
    """Reads a config; ConfigError or MissingInputError if it is unreadable, or has no options."""
    try:
        values = read_yaml(path, no_blanks=True)
        check_sections(path, values)
    except DataError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise MissingInputError(f"{path}: cannot be read ({error.strerror})") from error
    return values


SECTIONS = ("model", "model.network", "model.optimizer", "model.schedule", "data", "run", "trainer")
CLASSES = ("model.optimizer", "model.schedule")  # groups of options for which a class may be given instead


def check_sections(path: Path, values: Any) -> None:
    """Checks that a config has options, and that its sections contain only options.

    Raises:
        ConfigError: naming the file and the section.
    """
    if not isinstance(values, dict):
        problem = "is empty" if values is None else "has no options"
        raise ConfigError(f"{path}: {problem}; write options as in trainer: {{max_steps: 100}}")
    if "trust" in values:
        raise ConfigError(f"{path}: trust: can be given on the command line only; leave it out")
    for name in SECTIONS:
        value: Any = values
        for key in name.split("."):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if isinstance(value, str) and "." in value and name in CLASSES:
            continue
        if not isinstance(value, dict):
            given = "null" if value is None else value
            raise ConfigError(f"{path}: {name} must have options below it, got {given}; add some, or leave it out")


def source(name: str) -> str:
    """`file: ` for the last config file that sets an option; empty if the command line does."""
    path = option_source(name)
    return "" if path is None else f"{path}: "


def option_source(name: str) -> Path | None:
    """The last config file that sets an option; None if the command line does, or nothing."""
    if any(word.lstrip("-").split("=")[0].rstrip("+") == name for word in Given.words):
        return None
    for path in reversed(Given.files):
        value: Any = read_yaml(path)
        for key in name.split("."):
            value = value.get(key, value.get(f"{key}+", _ABSENT)) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            return path
    return None


_ABSENT = object()


# --- options


def suggest(name: str, known: Iterable[str]) -> str:
    """A suggestion for an unknown option: the same name in its section, ours for a foreign one, or the most similar."""
    known, leaf = list(known), name.rsplit(".", 1)[-1]
    leaves: dict[str, list[str]] = {}
    for option in known:
        leaves.setdefault(option.rsplit(".", 1)[-1], []).append(option)
    longer = [name for each in leaves if each.startswith(f"{leaf}_") for name in leaves[each]] if name == leaf else []
    same = leaves.get(leaf, []) + longer
    if not same:
        same = leaves.get(FOREIGN_NAMES.get(leaf, ""), [])
    siblings = [option for option in known if option.rpartition(".")[0] == name.rpartition(".")[0]]
    for candidates in (siblings, known):
        same = same or difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
    for close in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8) if not same else ():
        same = leaves[close]
    if not same or len(same) > 3:
        return "; --help lists all"
    return f", did you mean {' or '.join(map(repr, same))}?"


def unknown_option(name: str, known: Iterable[str]) -> str:
    """The error of an option of a config or the command line that does not exist."""
    return f"{source(name)}{name}: no such option{suggest(name, known)}"


def unknown_word(word: str, known: Iterable[str]) -> str:
    """A word of the command line that is not an option, or an option that does not exist."""
    if word.startswith("-"):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        return f"{name}: no such option{suggest(name, known)}"
    before = Given.words[: Given.words.index(word)] if word in Given.words else []
    place = max((i for i, each in enumerate(before) if each.startswith("-")), default=None)
    if place is not None and before[place] not in ("-c", "--config") and ("=" in before[place] or before[place + 1 :]):
        option = before[place].partition("=")[0]
        return f"{word}: is not an option; {option} takes one value: put a pattern or several words in quotes"
    options = {".yaml": "-c", ".yml": "-c", ".jsonl": "--data.pairs", ".csv": "--data.pairs", ".ckpt": "--ckpt_path"}
    suffix = Path(word).suffix
    with contextlib.suppress(MissingInputError):
        suffix = find_config(word).suffix
    if suffix or Path(word).exists():
        return f"{word}: is not an option, did you mean '{options.get(suffix, '--data.corpus')} {word}'?"
    return f"{word}: no such option{suggest(word, known)}"


KINDS = {"NoneType": "null", "tuple": "a list", "list": "a list", "dict": "options", "str": "text"}


def wrong_value(name: str, kinds: list[tuple[str, str]], value: Any, default: Any = None) -> str:
    """The error of a value that an option does not take.

    Args:
        name: the option
        kinds: accepted types: pairs of a type's name and choices such as `'adamw', 'muon'`, one of which is empty
        value: the value given
        default: the option's default, an example of a list
    """
    return f"{source(name)}{name} must be {_expected(kinds, default)}, got {value}"


def _expected(kinds: list[tuple[str, str]], default: Any) -> str:
    choices = dict.fromkeys(
        choice for _, literals in kinds for choice in literals.replace("'", "").split(", ") if choice
    )
    names = list(dict.fromkeys(KINDS.get(name, name) for name, _ in kinds if name))
    if isinstance(default, tuple | list) and default and "a list" in names:
        names[names.index("a list")] = f"a list such as {list(default)}"
    if choices:
        return f"one of {', '.join([*choices, *[name for name in names if name == 'null']])}"
    return " or ".join([*[name for name in names if name != "null"], *[name for name in names if name == "null"]])
