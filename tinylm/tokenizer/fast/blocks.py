"""Blocks: parts of a corpus that can be encoded independently, and so in any process.

A block holds about a megabyte of text: large enough to amortize the overhead of a call, small enough for
the processor's caches and for any memory. Short documents are packed together. Long ones are cut between words.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import regex

from tinylm.errors import DataError
from tinylm.files import check_utf8, file_size, read_range
from tinylm.recognize import refuse_records, text_begin

SEPARATOR = b"\xff"  # between two texts: this byte never occurs in UTF-8
BLOCK = 1 << 20  # characters


class Block:
    """A part of a corpus that can be encoded independently: a list of texts, each the whole or a part of a document.

    Args:
        texts: one per document; the first may lack its beginning and the last its end
        start: offset of the first text in its document, in characters, for positions in error messages
    """

    def __init__(self, texts: list[str], start: int = 0) -> None:
        self.__dict__["texts"] = texts
        self.start = start

    @cached_property
    def data(self) -> bytes:
        """The texts as UTF-8, joined by `SEPARATOR`.

        Raises:
            DataError: if a text has a lone surrogate.
        """
        return SEPARATOR.join(map(utf8, self.texts))

    @cached_property
    def texts(self) -> list[str]:
        """The texts; decoded lazily if the block was unpickled."""
        return [text.decode() for text in self.data.split(SEPARATOR)]

    def __reduce__(self) -> tuple[Callable, tuple]:
        try:
            return Block._of_data, (self.data, self.start)
        except DataError:
            return Block, (self.texts, self.start)

    @staticmethod
    def _of_data(data: bytes, start: int) -> "Block":
        block = Block.__new__(Block)
        block.__dict__["data"], block.start = data, start
        return block


class FileBlock(Block):
    """A byte range of a UTF-8 file, read by the process that encodes it. Its `start` is unknown and set to 0.

    Args:
        path: the file
        begin: first byte
        end: one past the last byte
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self.path, self.begin, self.end, self.start = path, begin, end, 0

    @cached_property
    def data(self) -> bytes:
        """The bytes of the range.

        Raises:
            DataError: if they are not UTF-8; the message gives the offset.
        """
        data = read_range(self.path, self.begin, self.end)
        check_utf8(data, self.path, self.begin)
        return data

    def __reduce__(self) -> tuple[Callable, tuple]:
        return FileBlock, (self.path, self.begin, self.end)


def file_blocks(path: Path, safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """Yields the blocks of a file, reading only what is needed to place the cuts: before a space if possible.

    Raises:
        MissingInputError: if the file does not exist.
        DataError: if it is in another format.
    """
    size, length = file_size(path), BLOCK
    head = read_range(path, 0, BLOCK)
    refuse_records(path, head)
    begin = text_begin(path, head)
    del head
    if not safe_cut("a a"):  # this tokenizer knows no safe cuts
        length = max(size, 1)
    while begin + length < size:
        end = begin + length
        tail = read_range(path, max(begin, end - 4096), end)
        if found := regex.search(rb"(?r)[!-~](?= )", tail):  # (?r): the last match
            end -= len(tail) - found.start() - 1
        else:
            text = read_range(path, begin, end).decode(errors="ignore")
            end = begin + len(text[: safe_cut(text)].encode())
        if end > begin:
            yield FileBlock(path, begin, end)
        begin, length = end, BLOCK if end > begin else 2 * length
    if begin < size:
        yield FileBlock(path, begin, size)


class Packer:
    """Packs short documents and cuts long ones into blocks of about a megabyte.

    Args:
        safe_cut: returns where a text may be cut, like `Tokenizer.safe_cut`
    """

    def __init__(self, safe_cut: Callable[[str], int]) -> None:
        self._safe_cut = safe_cut
        self._texts: list[str] = []  # completed documents
        self._parts: list[str] = []  # chunks of the current document
        self._start = self._next_start = 0  # offsets of the first text and of `_parts` in their documents
        self._held, self._enough = 0, BLOCK  # characters

    def add(self, document: Iterable[str]) -> Iterator[Block]:
        """Adds a document, given in chunks, and yields the blocks that it completes."""
        if self._held >= self._enough:
            yield from self.rest(end=True)
        for chunk in document:
            for begin in range(0, len(chunk), BLOCK):
                self._parts.append(chunk[begin : begin + BLOCK])
                self._held += len(self._parts[-1])
                if self._held >= self._enough:
                    yield from self._cut()
        self._texts.append("".join(self._parts))
        self._parts, self._next_start = [], 0

    def rest(self, end: bool) -> Iterator[Block]:
        """Yields the last block. If `end`, the block ends with the separator of the last document."""
        if self._texts:
            yield Block([*self._texts, ""] if end else self._texts, self._start)
        self._texts, self._start, self._held, self._enough = [], 0, 0, BLOCK

    def _cut(self) -> Iterator[Block]:
        text = "".join(self._parts)
        cut = self._safe_cut(text)
        if cut or self._texts:
            yield Block([*self._texts, text[:cut]], self._start)
            self._texts, text = [], text[cut:]
            self._start = self._next_start = self._next_start + cut
        self._parts, self._held = [text], len(text)
        self._enough = max(BLOCK, 2 * len(text))  # without a safe cut, retry at doubling lengths


def blocks(documents: Iterable[Iterable[str]], safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """Yields the blocks of documents, each given in chunks, without a separator after the last one."""
    packer = Packer(safe_cut)
    for document in documents:
        yield from packer.add(document)
    yield from packer.rest(end=False)


def utf8(text: str, errors: str = "strict") -> bytes:
    """Encodes a text as UTF-8; `errors` as in `str.encode`.

    Raises:
        DataError: if the text has a lone surrogate (half of a UTF-16 pair), which UTF-8 cannot represent.
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; "
            f"remove it or decode the source with errors='replace'"
        ) from error
