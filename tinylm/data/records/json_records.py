"""Records in JSON: an object on each line, or a list, read one record at a time."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, count
from typing import Any

from tinylm.data.records.reading import Reading, fail, text_of
from tinylm.data.records.text import decoded, split_text
from tinylm.data.sources import Source
from tinylm.errors import DataError
from tinylm.recognize import record_list

DECODER = json.JSONDecoder(strict=False)  # accepts control characters, such as NUL, in strings
NUMBER = re.compile(r"[-+.eE0-9]*")  # what may follow the beginning of a number, such as the rest of 1.5e-3
SPACES = re.compile(r"[ \t\n\r]*")
CUT = 16  # characters: longer than any literal, exponent or escape that the end of the buffer may divide

Records = Iterator[tuple[Any, str]]  # (record, the line or record number for errors)


class Buffer:
    """JSON text, of which only the part that is being parsed is in memory.

    Attributes:
        text: the text in memory
        at: the position in it
        hold: whether text before the position is kept
    """

    def __init__(self, chunks: Iterable[str]) -> None:
        self.chunks, self.text, self.at, self.hold, self.done = iter(chunks), "", 0, False, False

    def peek(self) -> str:
        """Moves to the next character that is not white space and returns it; an empty string at the end."""
        while True:
            found = SPACES.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self._read()

    def value(self) -> Any:
        """Parses the value at the position and moves past it; raises ValueError or RecursionError if it is invalid."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - CUT
                if self.done or not cut:
                    raise
            else:
                if self.done or not NUMBER.fullmatch(self.text, end):  # else a number may continue
                    self.at = end
                    return value
            self._read()

    def rest(self) -> Iterator[str]:
        """The text from the position on, in chunks."""
        return chain([self.text[self.at :]], self.chunks)

    def _read(self) -> None:
        """Doubles the text in memory, so that a long value takes linear time."""
        begin = 0 if self.hold else self.at
        pieces, size = [self.text[begin:]], 0
        while size <= len(pieces[0]) and not self.done:
            chunk = next(self.chunks, None)
            self.done = chunk is None
            pieces.append(chunk or "")
            size += len(pieces[-1])
        self.text, self.at = "".join(pieces), self.at - begin


def read_json(source: Source, reading: Reading, errors: str) -> Iterator[list[str]]:
    """The texts of the records of JSON lines, of a list, or of a list in an object if the field is `list.field`."""
    buffer = Buffer(decoded(source, errors))
    within = _enter_list(buffer, reading.field) if "." in reading.field else None
    if within is not None:
        reading = replace(reading, field=within)
    elif source.suffix == ".json" and (single := _single(buffer)):
        yield [text_of(single, reading, source.url, "", errors)]
        return
    for record, place in json_records(buffer, source.url) if within is None else _elements(buffer, source.url):
        yield [text_of(record, reading, source.url, place, errors)]


def json_records(chunks: Iterable[str] | Buffer, name: str) -> Records:
    """The records of a JSON list or of JSON lines, whatever the name of the file, with their places.

    Raises:
        DataError: if the text is neither; names the line or record.
    """
    buffer = chunks if isinstance(chunks, Buffer) else Buffer(chunks)
    buffer.hold = True  # for the numbers of the lines
    listed = buffer.peek() == "["
    buffer.hold = False
    if not listed:
        buffer.at = 0
        yield from _lines(buffer.rest(), name)
        return
    yield from _elements(buffer, name)
    if buffer.peek():
        fail(name, "", "has more text after its list; remove it")


def _lines(chunks: Iterable[str], name: str) -> Records:
    for number, line in enumerate(split_text(chunks, "\n"), start=1):  # splitlines would split at U+2028 too
        if not line or line.isspace():
            continue
        try:
            record = DECODER.decode(line)
        except json.JSONDecodeError as error:
            if line.strip() == "{":
                fail(name, "", "must be a list of records, or have one on each line; write [...] around it")
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            problem = f"is not valid JSON ({reason}); repair or remove it"
            raise DataError(f"{name}: line {number}: {problem}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: line {number}: is not valid JSON ({error}); repair or remove it") from error
        yield record, f"line {number}"


def _elements(buffer: Buffer, name: str) -> Records:
    """The elements of the list that begins at the position."""
    buffer.at += 1
    if buffer.peek() == "]":
        buffer.at += 1
        return
    for number in count(1):
        buffer.peek()
        try:
            record = buffer.value()
        except (ValueError, RecursionError) as error:
            reason = f"record {number}: {getattr(error, 'msg', error)}"
            raise DataError(f"{name}: is not valid JSON ({reason}); repair it") from error
        yield record, f"record {number}"
        mark = buffer.peek()
        buffer.at += 1
        if mark == "]":
            return
        if mark != ",":
            fail(name, "", f"is not valid JSON (no comma or ] after record {number}); repair it")


def _single(buffer: Buffer) -> dict | None:
    """The object if it is the whole text; otherwise None, and the position returns to the beginning."""
    buffer.hold = True
    record = None
    with contextlib.suppress(ValueError, RecursionError):  # the reader of lines reports it
        record = buffer.value() if buffer.peek() == "{" else None
    alone = record is not None and not buffer.peek()
    buffer.hold = False
    buffer.at = 0
    return record if alone else None


def _enter_list(buffer: Buffer, field: str) -> str | None:
    """Moves into the list that the field names in a JSON object, and returns the rest of the field; else None.

    If there is none, the position returns to the beginning: this may be the first of several lines.
    """
    buffer.hold = True
    rest = field
    try:
        while buffer.peek() == "{" and "." in rest:
            name, _, rest = rest.partition(".")
            if not _enter_field(buffer, name):
                break
            if buffer.peek() == "[":
                return rest
    except (ValueError, RecursionError):  # the reader of lines reports it
        pass
    finally:
        buffer.hold = False
    buffer.at = 0
    return None


def _enter_field(buffer: Buffer, name: str) -> bool:
    """Moves from the begin of an object to the value of a field; returns whether it has that field."""
    buffer.at += 1
    while buffer.peek() == '"':
        found = buffer.value()
        if buffer.peek() != ":":
            return False
        buffer.at += 1
        buffer.peek()
        if found == name:
            return True
        buffer.value()
        if buffer.peek() != ",":
            return False
        buffer.at += 1
    return False


def is_records(source: Source, reading: Reading, errors: str) -> bool:
    """Whether a file whose name ends in .json has records. Any other is a text, such as package.json among source code.

    Records are objects or strings in a list, objects on lines, an object with the field, or a list in an object that
    the field names.

    Raises:
        DataError: for an object with a list of objects that the field does not name.
    """
    head = next(decoded(source, "replace" if errors == "strict" else errors), "")
    buffer = Buffer([head])
    if "." in reading.field and _enter_list(buffer, reading.field) is not None:
        return True
    kind, name = record_list(head, reading.field)
    if name is not None:
        fail(source.url, "", f"holds a list of records under {name}; set data.field={name}.{reading.field}")
    return kind
