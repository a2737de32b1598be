"""Reading: the options for reading documents from files, and the text of a record."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tinylm.errors import ConfigError, DataError
from tinylm.recognize import pairs_advice

DEFAULT_FIELD = "text"
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Reading:
    """Options for reading documents from files.

    Attributes:
        field: the field or column of a record that is the document; `a.b` is field b of the object in field a
        separator: the text between the documents of a plain text file; None: `<|endoftext|>` if the file has it; an
            empty string: the file is one document
        include: patterns of the files to take from a folder
        exclude: patterns of the files to leave out
        deduplicate: whether only the first of equal documents is kept
    """

    field: str = DEFAULT_FIELD
    separator: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if not self.field:
            raise ConfigError("data.field: is empty; give the name of a field, such as text")


DEFAULT = Reading()


def text_of(record: Any, reading: Reading, path: str, place: str, errors: str = "strict") -> str:
    """The text of a record read from JSON or a table.

    A record that is itself a string is its text. A field whose name has a dot is found before a nested one.

    Args:
        record: the record
        reading: names the field
        path: the file, for messages
        place: the line or record in it, for messages
        errors: treatment of lone surrogates

    Raises:
        DataError: if the record has no such field, or the field is not a string; lists the existing fields.
    """
    if isinstance(record, str) and reading.field == DEFAULT_FIELD:
        return well_formed(record, path, place, errors)
    if not isinstance(record, dict):
        fail(path, place, f'must be an object such as {{"{reading.field}": "..."}}, got {shown(record)}')
    if reading.field in record:
        value = record[reading.field]
    else:
        value, within = record, ""
        for name in reading.field.split("."):
            if not isinstance(value, dict) or name not in value:
                _missing(record if not isinstance(value, dict) else value, within, reading.field, path, place)
            value, within = value[name], f"{within}{name}."
    if not isinstance(value, str):
        no_text(value, reading.field, path, place)
    return well_formed(value, path, place, errors)


def well_formed(text: str, path: str, place: str, errors: str) -> str:
    r"""The text itself, or without its lone surrogates (`\ud83d` in JSON), which are not characters.

    Raises:
        DataError: if it has any, unless `errors` is `replace`.
    """
    if text.isascii():
        return text
    try:
        text.encode(errors="surrogateescape" if errors == "surrogateescape" else "strict")
    except UnicodeEncodeError as error:
        if errors == "replace":
            return SURROGATES.sub("\ufffd", text)
        escape = f"\\u{ord(text[error.start]):04x}"
        fail(path, place, f"has a lone surrogate, {escape}; repair the record, or set data.errors=replace")
    return text


def no_text(value: Any, field: str, path: str, place: str) -> NoReturn:
    """Raises the DataError for a field that is not a string."""
    if value is None:
        fail(path, place, f"{field} is null; give it a text, or remove the record")
    fail(path, place, f"{field} must be a string, got {shown(value)}; set data.field to a field of text")


def missing_field(names: list[str], field: str, path: str, place: str) -> NoReturn:
    """Raises the DataError for a record or table without the field; `names` are the fields that it has."""
    if advice := pairs_advice(Path(path), names):
        raise DataError(f"{path}: {advice}")
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    fail(path, place, f"has no {field}; it has {listed or 'no fields'}: set data.field")


def _missing(value: dict, within: str, field: str, path: str, place: str) -> NoReturn:
    missing_field([within + str(name) if name in value else name for name in value], field, path, place)


def shown(value: Any) -> str:
    """A value as JSON, shortened for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def fail(path: str, place: str, problem: str) -> NoReturn:
    """Raises a DataError that names the file and, unless it is empty, the place in it."""
    raise DataError(f"{path}: {place}: {problem}" if place else f"{path}: {problem}")
