"""Compressed files, decompressed as they are read: gzip, Zstandard, xz and bzip2, recognized by their first bytes."""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from tinylm.errors import DataError, MissingInputError
from tinylm.recognize import HEAD, foreign

BLOCK = 1 << 20  # bytes
SUFFIXES = (".gz", ".zst", ".zstd", ".xz", ".bz2")
MAGIC = (
    ("gzip", re.compile(rb"\x1f\x8b")),
    ("Zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),  # the second: a skippable frame
    ("xz", re.compile(rb"\xfd7zXZ\0")),
    ("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")),  # the second: an empty file
)
MAGIC_LENGTH = 10


class Decoder(Protocol):
    """One compressed stream, in the interface of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the stream."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether all output of the data so far has been returned."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Decompresses data, at most `max_length` bytes at once."""
        ...


class _Gzip:
    """zlib's decompressor in the interface of bz2's. It checks the CRC and the length."""

    def __init__(self) -> None:
        self.stream = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self.stream.eof

    @property
    def unused_data(self) -> bytes:
        return self.stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        text = self.stream.decompress(self.stream.unconsumed_tail + data, max_length)
        self.needs_input = not self.stream.unconsumed_tail and len(text) < max_length
        return text


class _Zstandard:
    """A decompressor of zstandard in the interface of bz2's.

    It cannot limit its output, so it gets little input at a time: a block of at most 128 kB takes at least 4 bytes.
    """

    PIECE = 4096

    def __init__(self) -> None:
        import zstandard

        self.stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # as with --long=31
        self.waiting, self.eof, self.unused_data, self.needs_input = b"", False, b"", True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        waiting, position, texts, length = self.waiting + data, 0, [], 0
        while position < len(waiting) and length < max_length and not self.stream.eof:
            texts.append(self.stream.decompress(waiting[position : position + self.PIECE]))
            position += self.PIECE
            length += len(texts[-1])
        self.waiting = waiting[position:]
        if self.stream.eof:
            self.eof, self.unused_data, self.waiting = True, self.stream.unused_data + self.waiting, b""
        self.needs_input = not self.waiting
        return b"".join(texts)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _Gzip,
    "Zstandard": _Zstandard,
    "xz": lzma.LZMADecompressor,
    "bzip2": bz2.BZ2Decompressor,
}


def compression(head: bytes) -> str | None:
    """The name of the compression of a file that begins with `head`; None if it is not compressed."""
    return next((name for name, magic in MAGIC if magic.match(head)), None)


def decompressed(stored: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content of a file in blocks of at most about a megabyte; its own blocks if it is not compressed.

    Several streams in one file, as made by `cat a.gz b.gz`, are read one after the other.

    Args:
        stored: the bytes of the file
        name: its name in messages

    Raises:
        DataError: if the file is truncated or damaged, or a tar archive.
        MissingInputError: if a package is missing.
    """
    blocks = iter(stored)
    head = b""
    while len(head) < MAGIC_LENGTH and (block := next(blocks, b"")):
        head += block
    kind = compression(head)
    if kind is None:
        if head:
            yield head
        yield from blocks
        return
    first = b""
    for text in _streams(_prepend(head, blocks), name, kind):
        if len(first) < 512:
            first += text[:HEAD]
            if first.startswith(b"ustar", 257):
                raise DataError(f"{name}: {foreign(Path(name), first)}")
        yield text


def _prepend(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from blocks


def _streams(stored: Iterable[bytes], name: str, kind: str) -> Generator[bytes, None, None]:
    """The content of the compressed streams of a file. Zeros after a stream are padding."""
    decoder: Decoder | None = _decoder(kind, name)
    position = 0  # number of bytes given to the decoder
    for data in stored:
        begin, position = position, position + len(data)
        while data or decoder is not None:
            if decoder is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                decoder = _decoder(kind, name)
            try:
                text = decoder.decompress(data, BLOCK)
            except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, _zstd_error(kind)) as error:
                raise _damaged(name, kind, begin, error) from error
            if text:
                yield text
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None
            elif decoder.needs_input:
                break
    if decoder is not None:
        raise DataError(f"{name}: is truncated: its {kind} data break off at byte {position:,}; get it again")


def _damaged(name: str, kind: str, position: int, error: Exception) -> DataError:
    detail = " ".join(str(error).split()).removeprefix("Error ")
    problem = f"its {kind} data are invalid after byte {position:,} ({detail})"
    return DataError(f"{name}: is damaged: {problem}; get it again")


def _decoder(kind: str, name: str) -> Decoder:
    try:
        return DECODERS[kind]()
    except ImportError as error:
        raise MissingInputError(f'{name}: is compressed with {kind}; pip install "tinylm[data]" to read it') from error


def _zstd_error(kind: str) -> type[Exception]:
    if kind != "Zstandard":
        return zlib.error
    import zstandard

    return zstandard.ZstdError
