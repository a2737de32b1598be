"""A whole `data:` of one's own among the options of `fit`: `data: {class_path: my_data.Lines, init_args: {path: x}}`.

The arguments of its constructor are the options `data.*`: `--data.path x`, in a config below `init_args`. What a config
before the one that names the class says of `data` is for another class, and left out.
"""

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tinylm.chosen import given_configs
from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.locate import find_config
from tinylm.plugins import Part
from tinylm.safe_yaml import read_yaml

KEY = "data.class_path"
INNER = "--data.init_args."


class OwnClass:
    """The data module that this command line names, and whether a config that has been read names it."""

    path: ClassVar[str | None] = None
    named: ClassVar[bool] = False


def data_class_path(words: list[str]) -> str | None:
    """The class path of `data` on a command line or in its configs, the last that is given; None for none."""
    found = None
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == f"--{KEY}":
            found = value if equals else following
        for config in given_configs([word, following][: 2 if word in ("-c", "--config") else 1]):
            found = _data_of(config).get("class_path", found)
    return found


def _data_of(config: str) -> dict[str, Any]:
    """The section `data` of a config; empty if there is none."""
    try:
        values = read_yaml(find_config(config))
    except (ConfigError, MissingInputError, OSError):  # reported where the config is read
        return {}
    data = values.get("data") if isinstance(values, dict) else None
    return data if isinstance(data, dict) else {}


def load_data_class(class_path: str) -> type:
    """The class; raises ConfigError if it is not trusted, or is no LightningDataModule."""
    from lightning.pytorch import LightningDataModule

    kind = Part(class_path).load("data")
    if not (isinstance(kind, type) and issubclass(kind, LightningDataModule)):
        raise ConfigError(f"data: {class_path} is no LightningDataModule; derive it from that")
    return kind


def takes(kind: type, argument: str) -> bool:
    """Whether the constructor of a class has an argument."""
    return argument in inspect.signature(kind).parameters


def plain_words(words: list[str]) -> list[str]:
    """The words in which the arguments of the class are options: without class_path and init_args."""
    plain, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skip and name != f"--{KEY}":
            plain.append(f"--data.{word.removeprefix(INNER)}" if word.startswith(INNER) else word)
        skip = name == f"--{KEY}" and not equals
    return plain


def plain_config(text: str, path: Path) -> str:
    """The text of a config in which the arguments of the class are options of `data`."""
    values = yaml.safe_load(text)
    data = values.get("data") if isinstance(values, dict) else None
    if OwnClass.path is None or not isinstance(data, dict):
        return text
    named = data.pop("class_path", None)
    OwnClass.named = OwnClass.named or named == OwnClass.path
    if OwnClass.named and named in (None, OwnClass.path):
        values["data"] = {**data.pop("init_args", {}), **data}
    else:
        del values["data"]
        notice(f"{path}: data is left out, since {OwnClass.path} gives the data")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
