"""Plain text: a file is a document, or has several between separators."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tinylm.data.records.reading import Reading
from tinylm.data.sources import Source
from tinylm.errors import DataError
from tinylm.files import decode_blocks

REPAIR = "repair the file, set data.errors=replace, or use the byte tokenizer"
END = "<|endoftext|>"  # separates documents unless `Reading.separator` is set
SCAN = 8 << 20  # bytes of a file within which END is looked for
QUOTES = rb"[\"'`]"  # around it where prose about language models mentions it
UNQUOTED = re.compile(rb"(?<!%b)%b|%b(?!%b)" % (QUOTES, re.escape(END.encode()), re.escape(END.encode()), QUOTES))


class FileText:
    """The text of a whole file in chunks, read again by every iteration, so that it may be larger than memory."""

    def __init__(self, source: Source, errors: str) -> None:
        self.source, self.errors = source, errors

    def __iter__(self) -> Iterator[str]:
        return decoded(self.source, self.errors)


def decoded(
    source: Source,
    errors: str,
    remedy: str = REPAIR,
    digest: "hashlib._Hash | None" = None,
    records: bool = True,
) -> Iterator[str]:
    """The text of a source in chunks of about a megabyte, without a byte order mark.

    The arguments are those of `decode_blocks`.

    Raises:
        MissingInputError: if it does not exist or cannot be read.
        DataError: if it is in another format or encoding.
    """
    path = Path(source.url)
    try:
        yield from decode_blocks(source.blocks(), path, errors, digest, records=records, remedy=remedy)
    except DataError as error:
        if str(path) == source.url or str(path) not in str(error):
            raise
        raise DataError(str(error).replace(str(path), source.url)) from error  # a URL loses a slash as a path


def read_text(source: Source, reading: Reading, errors: str) -> Iterator[Iterable[str]]:
    """The documents of a text file: the file, or what stands between its separators, unchanged."""
    separator = find_separator(source, reading)
    if separator is None:
        yield FileText(source, errors)
        return
    for text in split_documents(decoded(source, errors), separator):
        yield [text]


def find_separator(source: Source, reading: Reading) -> str | None:
    """The separator of the documents in a text file; None if it has none.

    Without `reading.separator` it is `<|endoftext|>`, if the first 8 MB of the file have it other than in quotes.
    """
    if reading.separator == "":
        return None
    separator = reading.separator or END
    pattern = UNQUOTED if reading.separator is None else re.compile(re.escape(separator.encode()))
    tail, seen = b"", 0
    for block in chain(source.blocks(), [b""]):
        text = tail + block
        for found in pattern.finditer(text):
            if (found.start() > 0 or not seen) and (
                found.end() < len(text) or not block
            ):  # the characters around it are known
                return separator
        seen, tail = seen + len(block), text[-len(separator.encode()) - 1 :]
        if seen >= SCAN and reading.separator is None:
            return None
    return None


def split_text(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """The texts between separators, which may straddle chunks, in time linear in their length."""
    held: list[str] = []  # the beginning of the text
    tail, overlap = "", len(separator) - 1  # its end, in which a separator may begin
    for chunk in chunks:
        *complete, rest = (tail + chunk).split(separator)
        for text in complete:
            yield "".join([*held, text]) if held else text
            held = []
        cut = max(0, len(rest) - overlap)
        if cut:
            held.append(rest[:cut])
        tail = rest[cut:]
    yield "".join([*held, tail])


def split_documents(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """The nonempty texts between separators, which may straddle chunks."""
    return filter(None, split_text(chunks, separator))
