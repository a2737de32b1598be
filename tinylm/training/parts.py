"""Plug-ins as options of `fit`: a `Part` in jsonargparse and on the command line.

--model.network.norm my_layers.Norm --model.network.norm.init_args.eps 1e-3
"""

import contextlib
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse.typing import register_type

from tinylm.chosen import given_configs
from tinylm.errors import ConfigError, MissingInputError
from tinylm.locate import find_config
from tinylm.plugins import DataPart, Part
from tinylm.safe_yaml import read_yaml

# Options that take a plug-in.
PARTS = ("model.network.attention", "model.network.feedforward", "model.network.norm", "model.network.activation",
         "model.network.positional_encoding", "model.objective", "model.schedule", "model.optimizer",
         "data.corpus", "data.val", "data.tokenizer")  # fmt: skip
FILES = ("data.corpus", "data.val", "data.tokenizer")  # a plain value such as my.txt is a file, not an import path


def _part(value: Any) -> Part:
    try:
        return Part.of(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error  # so that jsonargparse tries the other types of the option


def _data_part(value: Any) -> DataPart:
    given = _dict(value) if isinstance(value, str) and value.startswith("{") else value
    if not isinstance(given, DataPart) and "class_path" not in (given if isinstance(given, dict) else {}):
        raise ValueError("class_path is missing")
    return DataPart(**_part(given).to_dict())


register_type(Part, serializer=lambda part: Part.of(part).to_dict(), deserializer=_part)
register_type(DataPart, serializer=Part.to_dict, deserializer=_data_part)


def typed_class_path(name: str, value: str) -> str:
    """The class path that a word of the command line gives; empty if it gives none.

    Args:
        name: the option
        value: its value
    """
    if name.endswith(".class_path") or (name in PARTS and name not in FILES):
        value = value.strip()
        return str((_dict(value) or {}).get("class_path", "")) if value.startswith("{") else value
    return ""


def fold_parts(words: list[str]) -> list[str]:
    """Joins the words that describe one plug-in into a single word, together with its settings in the configs.

    >>> fold_parts(["--model.network.norm.class_path", "my.Norm", "--model.network.norm.init_args.eps=1e-3"])
    ['--model.network.norm={"class_path": "my.Norm", "init_args": {"eps": 0.001}}']
    """
    pairs = list(_options(words))
    touched = {name for name, key, *_ in pairs if key}
    parts = {name: {"class_path": "", "init_args": {}, **_configured(name, words)} for name in touched}
    folded: list[str] = []
    for name, key, value, own in pairs:
        if name not in touched:
            folded += own
            continue
        part = parts[name]
        if key in ("", "class_path"):
            given = _dict(value) if value.startswith("{") else {"class_path": value}
            parts[name] = {"class_path": "", "init_args": {}, **(given or {})}
        elif key == "init_args":
            part["init_args"] = {**part["init_args"], **(_dict(value) or {})}
        else:
            part["init_args"] = {**part["init_args"], key.removeprefix("init_args."): _value(value)}
    return folded + [f"--{name}={json.dumps(part)}" for name, part in parts.items()]


def _options(words: list[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """The plug-in, the key below it, the value and the words of each option; other options have only words."""
    skip = False
    for word, following in pairwise([*words, ""]):
        if skip:
            skip = False
            continue
        option, equals, value = word.partition("=")
        name = next((part for part in PARTS if f"{option}.".startswith(f"--{part}.")), "")
        key = option[len(name) + 3 :]
        if not name or (key and key != "class_path" and key.split(".")[0] != "init_args"):
            yield "", "", "", [word]
            continue
        skip = not equals
        yield name, key, value or following, [word] if equals else [word, following]


def _configured(name: str, words: list[str]) -> dict[str, Any]:
    """The plug-in of an option in the last config of the command line that sets it; empty if none does."""
    found: dict[str, Any] = {}
    for config in given_configs(words):
        try:
            value: Any = read_yaml(find_config(config))
        except (ConfigError, MissingInputError):  # reported where the config is read
            continue
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict) and "class_path" in value:
            found = {"class_path": value["class_path"], "init_args": dict(value.get("init_args") or {})}
        elif isinstance(value, str):
            found = {"class_path": value}
    return found


def _dict(text: str) -> dict[str, Any] | None:
    value = _value(text)
    return value if isinstance(value, dict) else None


def _value(text: str) -> Any:
    """The value of a word; JSON first, since YAML 1.1 takes 1e-3 for text."""
    for read in (json.loads, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text
