"""The user's own class for `data` in `fit`: `data: {class_path: my_data.Lines, init_args: {path: x}}`.

The arguments of its constructor become options `data.*`, such as `--data.path x`; in a config they are listed below
`init_args`. Settings of `data` in earlier configs belong to another class and are left out.
"""

import inspect
from pathlib import Path
from typing import ClassVar

import yaml

from tinylm.errors import notice

KEY = "data.class_path"


class OwnClass:
    """The data module that this command line names, and whether a config that has been read names it."""

    path: ClassVar[str | None] = None
    named: ClassVar[bool] = False


def takes(kind: type, argument: str) -> bool:
    """Whether the constructor of a class has an argument."""
    return argument in inspect.signature(kind).parameters


def plain_words(words: list[str]) -> list[str]:
    """The words without the class path: `flat_words` has turned the arguments of the class into options."""
    plain, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skip and name != f"--{KEY}":
            plain.append(word)
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


def with_data_class(text: str) -> str:
    """The text of a config in which the options of `data` are arguments of the class: the reverse of `plain_config`."""
    values = yaml.safe_load(text)
    values["data"] = {"class_path": OwnClass.path, "init_args": values["data"]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
