"""Text in parts that can be encoded by themselves, and so by any process: what all bulk work goes through.

A block is about a megabyte of texts: large enough that the work for a call does not count, small enough for the
processor's caches and for any memory. Short documents are packed together, long ones cut where no word is.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import regex

from tinylm.errors import DataError
from tinylm.files import decode, file_size, read_range

SEPARATOR = b"\xff"  # between two texts: no UTF-8 has this byte
BLOCK = 1 << 20  # characters that are encoded at once: little memory, and the work for a call does not count


class Block:
    """A part of a corpus that can be encoded by itself: some texts, between which documents end.

    Args:
        texts: the first may be the rest of a document, the last its beginning
        start: where the first one begins in its document, in characters, for positions in errors
    """

    def __init__(self, texts: list[str], start: int = 0) -> None:
        self.__dict__["texts"] = texts
        self.start = start

    @cached_property
    def data(self) -> bytes:
        """The texts as UTF-8, with `SEPARATOR` between them.

        Raises:
            DataError: for a lone surrogate.
        """
        return SEPARATOR.join(map(utf8, self.texts))

    @cached_property
    def texts(self) -> list[str]:
        """The texts, decoded when they are wanted where the block comes from another process."""
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
    """A block that is a part of a UTF-8 file, read by the process that encodes it. (Its `start` is not known.)

    Args:
        path: the file
        begin: where the part begins in it, in bytes
        end: where it ends
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self.path, self.begin, self.end, self.start = path, begin, end, 0

    @cached_property
    def data(self) -> bytes:
        """As `Block`.

        Raises:
            DataError: if it is not UTF-8, with the place.
        """
        data = read_range(self.path, self.begin, self.end)
        decode(data, self.path, self.begin)
        return data

    def __reduce__(self) -> tuple[Callable, tuple]:
        return FileBlock, (self.path, self.begin, self.end)


def file_blocks(path: Path, safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """The blocks of a file, of which hardly anything is read yet: they end before a space, if there is one.

    Raises:
        MissingInputError: if there is no such file.
    """
    size, begin, length = file_size(path), 0, BLOCK
    if not safe_cut("a a"):  # nothing is known of where this text can be cut
        length = max(size, 1)
    while begin + length < size:
        end = begin + length
        tail = read_range(path, max(begin, end - 4096), end)
        if found := regex.search(rb"(?r)[!-~](?= )", tail):  # (?r): the last one
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
    """Cuts documents, or packs them together, into blocks of about a megabyte.

    Args:
        safe_cut: where a text may be cut, as `Tokenizer.safe_cut`
    """

    def __init__(self, safe_cut: Callable[[str], int]) -> None:
        self._safe_cut = safe_cut
        self._texts: list[str] = []  # documents that have ended
        self._parts: list[str] = []  # chunks of the one that has not
        self._start = self._next_start = 0  # of the first text, and of `_parts`, in their documents
        self._held, self._enough = 0, BLOCK  # characters

    def add(self, document: Iterable[str]) -> Iterator[Block]:
        """Takes a document, in chunks; gives the blocks that become full."""
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
        """The last block; with `end` the last document's end is in it."""
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
        self._enough = max(BLOCK, 2 * len(text))  # where there is no place to cut, it is looked for now and then only


def blocks(documents: Iterable[Iterable[str]], safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """The blocks of some documents, each in chunks; the last one's end is not in them."""
    packer = Packer(safe_cut)
    for document in documents:
        yield from packer.add(document)
    yield from packer.rest(end=False)


def utf8(text: str, errors: str = "strict") -> bytes:
    """The UTF-8 bytes of a text; `errors` as in `str.encode`.

    Raises:
        DataError: for a lone surrogate, which is half a character and has no UTF-8 form.
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; "
            f"remove it or decode the source with errors='replace'"
        ) from error
