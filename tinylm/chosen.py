"""Finds the classes that configs and command line name by `class_path`, before the parser of their options is built.

The options of a whole `model` or `data` stand beside the usual ones, `model: {class_path: mine.Distilled, teacher:
runs/small}`; Lightning's own form, with `init_args` around them, means the same. `model.optimizer` and `model.schedule`
are groups of options, or a class with its `init_args`; the last config that sets one decides between the two.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError
from tinylm.locate import find_config
from tinylm.mistakes import read_config

PARTS = ("model", "data")
GROUPS = ("model.optimizer", "model.schedule")


def given_configs(words: list[str]) -> list[str]:
    """The values of all `-c` and `--config` options.

    >>> given_configs(["-c", "small", "--data.corpus", "my.txt", "--config=overlays/bf16.yaml", "-ctiny"])
    ['small', 'overlays/bf16.yaml', 'tiny']
    """
    return [config for config in map(_config, words, [*words[1:], ""]) if config]


def _config(word: str, following: str) -> str:
    if word in ("-c", "--config"):
        return following
    if word.startswith("--config=") or (word.startswith("-c") and not word.startswith("--")):
        return word.removeprefix("--config").removeprefix("-c").removeprefix("=")
    return ""


def chosen_path(part: str, words: list[str]) -> tuple[str, Path | None] | None:
    """The last `class_path` of a part, and the config that gives it.

    Args:
        part: `model` or `data`
        words: the command line; a config of None in the result means that the command line names the class

    Returns:
        None if no class is named

    Raises:
        ConfigError: if a class path is not text, or a config cannot be read.
        MissingInputError: if there is no such config.
    """
    return next(reversed([*_chosen_paths(part, words)]), None)


def _chosen_paths(part: str, words: list[str]) -> Iterator[tuple[str, Path | None]]:
    for word, following in pairwise([*words, ""]):
        name, given, value = word.partition("=")
        if name == f"--{part}.class_path":
            yield value if given else following, None
        elif config := _config(word, following):
            path = find_config(config)
            section = read_config(path).get(part)
            found = section.get("class_path") if isinstance(section, dict) else None
            if found is not None and not isinstance(found, str):
                raise ConfigError(
                    f"{path}: {part}.class_path must be the path of a class, as in mine.Mine, got {found}"
                )
            if found is not None:
                yield found, path


def names_class(option: str, words: list[str]) -> bool:
    """Whether one of `GROUPS` is a class of the user's choice, not a group of options.

    Raises:
        ConfigError: if the command line sets an option of the group although it is a class.
    """
    found, others = False, []
    for word, following in pairwise([*words, ""]):
        name = word.partition("=")[0].removeprefix("--")
        whole = word.startswith("--") and name == option
        if whole or word.startswith((f"--{option}.class_path", f"--{option}.init_args")):
            found = True
        elif word.startswith(f"--{option}.") and not name.endswith(".help"):
            others.append(name)
        elif config := _config(word, following):
            value = _value(read_config(find_config(config)), option)
            found = found if value is None else _is_class(value)
    if found and others:
        leaf = others[0].removeprefix(f"{option}.")
        raise ConfigError(f"{others[0]}: {option} is a class here; give {option}.init_args.{leaf}, or leave it out")
    return found


def _value(values: Any, option: str) -> Any:
    for key in option.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _is_class(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and not {"class_path", "init_args"}.isdisjoint(value))


def chosen_values(values: dict[str, Any], source: str, words: list[str]) -> dict[str, Any]:
    """`flat_values` without the groups that a later config replaces by a class, and classes replaced by a group."""
    flat = flat_values(values, source)
    for option in GROUPS:
        part, _, name = option.partition(".")
        value = _value(flat, option)
        if value is not None and _is_class(value) != names_class(option, words):
            flat[part] = {key: each for key, each in flat[part].items() if key != name}
    return flat


def flat_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The options of a config with those below `model.init_args` and `data.init_args` one level up.

    Raises:
        ConfigError: if an option stands in both places.
    """
    flat = dict(values)
    for part in PARTS:
        section = values.get(part)
        if isinstance(section, dict) and isinstance(section.get("init_args"), dict):
            inner, outer = section["init_args"], {name: each for name, each in section.items() if name != "init_args"}
            if twice := inner.keys() & outer.keys():
                name = f"{part}.{min(twice)}"
                raise ConfigError(f"{source}: {name} is given twice, with and without init_args; keep one")
            flat[part] = {**outer, **inner}
    return flat


def flat_words(words: list[str]) -> list[str]:
    """A command line without the `init_args` of a whole part.

    >>> flat_words(["--model.init_args.teacher", "runs/small", "--model.optimizer.init_args.lr=1"])
    ['--model.teacher', 'runs/small', '--model.optimizer.init_args.lr=1']
    """
    for part in PARTS:
        words = [
            word.replace(".init_args", "", 1) if word.startswith(f"--{part}.init_args.") else word for word in words
        ]
    return words
