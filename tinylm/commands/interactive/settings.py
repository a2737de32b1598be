"""The settings of the prompt loop: options of sampling, and `truncate`, which `/set` changes."""

import contextlib
import dataclasses
import json
import math
import re
from typing import Any

import yaml

from tinylm.errors import ConfigError, did_you_mean
from tinylm.generation.options import SamplingConfig

DEFAULTS = dataclasses.asdict(SamplingConfig()) | {"truncate": None}
NOTHING = ("none", "null", "off", "[]")
LISTS = ("stop", "banned_tokens")


def descriptions() -> dict[str, str]:
    """A line on each setting, by name."""
    import docstring_parser  # jsonargparse uses it for the help of configs

    fields = docstring_parser.parse_from_object(SamplingConfig).params
    found = {field.arg_name: (field.description or "").partition("\n")[0] for field in fields}
    return found | {"truncate": "left: drop the beginning of a prompt that exceeds the context."}


def parse_assignment(words: str) -> tuple[str, Any]:
    """The name and the value in `NAME VALUE`, `NAME=VALUE` or `NAME: VALUE`; the value is ... if there is none.

    Raises:
        ConfigError: for a name that is unknown or fits several settings, or a value that cannot be read.

    >>> parse_assignment("temp=0.5"), parse_assignment("TOP-K 3"), parse_assignment("stop ."), parse_assignment("seed")
    (('temperature', 0.5), ('top_k', 3), ('stop', ['.']), ('seed', Ellipsis))
    """
    found = re.fullmatch(r"\s*([\w-]+)(?:\s*[=:\s]\s*(.+?))?\s*", words, re.DOTALL)
    if found is None:
        raise ConfigError("/set takes a name and a value, as in: /set temperature 0.5")
    name = find_name(found[1])
    return name, ... if found[2] is None else parse_value(name, found[2])


def find_name(given: str) -> str:
    """The setting that a name means; upper case, dashes and unambiguous abbreviations are understood."""
    name = given.lower().replace("-", "_")
    if name in DEFAULTS:
        return name
    begun = [each for each in DEFAULTS if each.startswith(name)] if len(name) > 2 else []
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise ConfigError(f"{given}: fits {', '.join(begun)}; write one of them")
    raise ConfigError(f"{given}: no such setting{did_you_mean(name, DEFAULTS) or '; /settings lists all'}")


def parse_value(name: str, text: str) -> Any:
    """A value: JSON, else YAML; for `stop` also a plain text, and `none` or `off` for what is off by default.

    >>> parse_value("temperature", "1e-3"), parse_value("stop", "[., '!']"), parse_value("top_k", "off")
    (0.001, ['.', '!'], None)
    """
    if text.lower() in NOTHING and DEFAULTS[name] in (None, ()):
        return [] if name in LISTS else None
    if name == "stop" and text[0] not in "[\"'":
        return [text]
    value = _parse(name, text)
    return [value] if name in LISTS and not isinstance(value, list) else value


def _parse(name: str, text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)  # in YAML 1.1 a number like 1e-3 is a string
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f'{name} must be YAML, such as 0.5, null or ["."], got {text}') from error


def show(settings: dict[str, Any]) -> str:
    """Settings, one per line, with values that `/set` accepts."""
    options: dict[str, Any] = dict(default_flow_style=True, allow_unicode=True, width=math.inf)
    values = [yaml.safe_dump([value], **options).strip()[1:-1] for value in settings.values()]
    return "\n".join(f"{name}: {value}" for name, value in zip(settings, values, strict=True))
