"""Fields of config.json that need more than renaming: widths of heads and flags here, others in their own files.

A `Translation` writes such fields and reads them. Reading completes them as transformers does and normalizes
their spelling to that of `write`, so that `import_config` can compare the two.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig

Fields = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS, WIDTH, HEADS = "num_hidden_layers", "hidden_size", "num_attention_heads"


@dataclass(frozen=True)
class Translation:
    """Fields that belong together.

    Attributes:
        write: the fields that describe a config
        read: values of our fields; may change the given ones to the spelling of `write`. ConfigError names a field
    """

    write: Callable[[ModelConfig], Fields]
    read: Callable[[Fields], Fields] = lambda fields: {}


def constant(**fields: Any) -> Translation:
    """Fields that tinylm supports with one value only."""
    return Translation(lambda config: fields)


def shown(value: Any) -> str:
    """A value of a JSON file, shortened."""
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def is_nothing(value: Any) -> bool:
    """Whether a value is null, false or empty, and so turns nothing on."""
    return value is None or value is False or value in ("", [], {})


def refuse(name: str, value: Any, supported: str) -> None:
    """Raises the ConfigError of a value that tinylm does not support."""
    raise ConfigError(f"{name} is {shown(value)}; tinylm supports only {supported} here")


# --- heads


def head_dim(always: bool = True) -> Translation:
    """The width of a head; written for every config, or only if it is not hidden_size / num_attention_heads."""

    def write(config: ModelConfig) -> Fields:
        usual = config.head_dim * config.num_heads == config.d_model
        return {"head_dim": config.head_dim} if always or not usual else {}

    def read(fields: Fields) -> Fields:
        width = fields.get("head_dim")
        if width is None:
            return {"d_head": None}
        if type(width) is not int or width < 1:
            refuse("head_dim", width, "a positive integer")
        usual = width * fields[HEADS] == fields[WIDTH]
        if usual and not always:
            del fields["head_dim"]
        return {"d_head": None if usual else width}

    return Translation(write, read)


# --- flags


def flag(name: str, ours: str, on: Any, off: Any) -> Translation:
    """A field that is true for one value of our field, and false for another."""

    def read(fields: Fields) -> Fields:
        value = fields[name]
        if type(value) is not bool:
            refuse(name, value, "true or false")
        return {ours: on if value else off}

    return Translation(lambda config: {name: getattr(config, ours) == on}, read)
