"""Reading: files that the user gives, UTF-8 in chunks, JSON."""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinylm.errors import DataError, MissingInputError
from tinylm.recognize import refuse_records, text_begin, utf8_problem

if TYPE_CHECKING:
    import hashlib

CHECKED = 1 << 16  # bytes decoded at once, where only their validity matters


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: if the file is not JSON.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text; `source` is its name in the DataError for any other text."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not valid JSON ({error})") from error


def why_unreadable(path: str | Path) -> str | None:
    """The reason why a path cannot be read as a file; None if it is a file."""
    try:
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for an overlong name)
            return None
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
            return f"is a link to {os.readlink(path)}, which does not exist; repair or remove it"  # noqa: PTH115
        if os.path.isdir(path):  # noqa: PTH112
            return "is a folder; give a file"
        os.stat(path)  # noqa: PTH116
    except PermissionError as error:
        return f"cannot be read ({error.strerror}); change its permissions"
    except (OSError, ValueError):  # missing, too long, with a NUL
        pass
    return "no such file"


def file_size(path: Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        MissingInputError: if the file does not exist.
    """
    if problem := why_unreadable(path):
        raise MissingInputError(f"{path}: {problem}")
    return path.stat().st_size


def open_input(path: Path) -> BinaryIO:
    """Opens a file that the user has given, for reading.

    Raises:
        MissingInputError: if it does not exist or cannot be read.
    """
    if problem := why_unreadable(path):
        raise MissingInputError(f"{path}: {problem}")
    try:
        return path.open("rb")
    except PermissionError as error:
        raise MissingInputError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error


def read_range(path: Path, begin: int, end: int) -> bytes:
    """Reads the bytes of a file from `begin` up to `end`."""
    with open_input(path) as file:
        file.seek(begin)
        return file.read(end - begin)


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """Decodes UTF-8.

    Args:
        data: bytes that begin and end at character boundaries
        path: the file they come from, for the error message
        offset: their offset in that file

    Raises:
        DataError: if they are not valid UTF-8; the message gives the offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise utf8_problem(path, error, offset + error.start, "repair the file") from error


def check_utf8(data: bytes, path: Path, offset: int = 0) -> None:
    """Checks that bytes are UTF-8, part by part: their whole text could take six times their memory.

    Arguments and errors as in `decode`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, len(data), CHECKED):
            decoder.decode(data[begin : begin + CHECKED])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        decode(data, path, offset)  # raises the error, with its offset


def read_chunks(
    path: Path,
    errors: str = "strict",
    digest: "hashlib._Hash | None" = None,
    *,
    records: bool = False,
    remedy: str = "repair the file",
    report: Callable[[int], object] | None = None,
) -> Iterator[str]:
    """Yields the text of a UTF-8 file in chunks of about a megabyte, without newline translation.

    `report` is called with the number of bytes read since the last call. The other arguments, and the errors, are those
    of `decode_blocks`.

    Raises:
        MissingInputError: if the file does not exist or cannot be read.
    """
    with open_input(path) as file:

        def blocks() -> Iterator[bytes]:
            while data := file.read(1 << 20):
                if report is not None:
                    report(len(data))
                yield data

        yield from decode_blocks(blocks(), path, errors, digest, records=records, remedy=remedy)


def decode_blocks(
    blocks: Iterable[bytes],
    path: Path,
    errors: str = "strict",
    digest: "hashlib._Hash | None" = None,
    *,
    records: bool = False,
    remedy: str = "repair the file",
) -> Iterator[str]:
    """Yields the UTF-8 text of blocks of bytes, without a byte order mark before it.

    Args:
        blocks: the content; the first block has at least `recognize.HEAD` bytes unless the content is shorter
        path: the file that they come from, for messages
        errors: that of `bytes.decode`
        digest: a hash object to update with the bytes of the text
        records: whether JSON is expected; otherwise it is refused
        remedy: the advice in the error for invalid UTF-8

    Raises:
        DataError: if the content is in another format, or not valid UTF-8 and `errors="strict"`; the message gives the
            format or the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0  # offset of the first byte not decoded yet
    for data in chain(blocks, [b""]):
        if not offset and data:
            if not records:
                refuse_records(path, data)
            offset = text_begin(path, data, errors)
            data = data[offset:]
            if not data:
                continue
        if digest is not None:
            digest.update(data)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise utf8_problem(path, error, offset + error.start, remedy) from error
        if text:
            yield text
        offset += pending + len(data) - len(decoder.getstate()[0])
