"""Source: a file of a corpus, local or at a URL, compressed or not, as bytes.

The contents of a file (a text, JSON records, a table) are not known here.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tinylm.data.sources.compression import SUFFIXES, decompressed
from tinylm.data.sources.local import LocalFile
from tinylm.data.sources.memory import remembered
from tinylm.data.sources.remote import RemoteFile
from tinylm.data.web import State

BLOCK = 1 << 18  # bytes; smaller blocks are joined


def suffix_of(url: str) -> str:
    """The suffix of a path or URL in lower case, without a compression's suffix: `.jsonl` of `a.jsonl.zst`."""
    path = PurePosixPath(urlsplit(url).path if re.match(r"https?://", url) else url)
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).suffix.lower()


@dataclass(frozen=True)
class Source:
    """A file to read. It must not change after its first use: otherwise, reading it raises DataError.

    Attributes:
        url: a path, or a URL
        cache_dir: the cache folder, which remembers fingerprints; by default that of `TINYLM_CACHE`
        listed: size and version, if the listing of a remote folder contained them
    """

    url: str
    cache_dir: Path | None = field(default=None, compare=False, repr=False, kw_only=True)
    listed: State | None = field(default=None, compare=False, repr=False, kw_only=True)

    @cached_property
    def _file(self) -> LocalFile | RemoteFile:
        return RemoteFile(self.url) if "://" in self.url else LocalFile(self.url, self.cache_dir)

    @cached_property
    def _state(self) -> State:
        return self.listed or self._file.state()

    @property
    def suffix(self) -> str:
        """The suffix of the name in lower case, without a compression's suffix: `.jsonl` of `a.jsonl.zst`."""
        return suffix_of(self.url)

    @property
    def size(self) -> int | None:
        """Bytes of the file as it is stored; None if unknown.

        Raises:
            MissingInputError: if it does not exist or cannot be read.
        """
        return self._state.size

    def fingerprint(self, report: Callable[[int], None] | None = None) -> str:
        """SHA-256 of the stored bytes; for a remote file, of its URL, size and version.

        Args:
            report: as in `blocks`, if the file has to be read

        Raises:
            MissingInputError: if it does not exist or cannot be read.
        """
        return self._file.fingerprint(self._state, report)

    def remembered(self, kind: str, compute: Callable[[], Any]) -> Any:
        """The value of `compute` for the current content of a local file, computed or remembered.

        Args:
            kind: what the value is, and everything else that it depends on
            compute: reads the file; its value can be written as JSON
        """
        if not isinstance(self._file, LocalFile):
            return compute()
        return remembered(self.url, kind, compute, self.cache_dir)

    def open(self) -> BinaryIO:
        """Opens the file as it is stored, to be read in any order.

        Raises:
            MissingInputError: if it does not exist or cannot be read.
            DataError: if it has changed.
        """
        return self._file.open(self._state)

    def blocks(self, report: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """The decompressed content in blocks of 256 kB to about a megabyte; the last may be smaller.

        Args:
            report: receives the number of stored bytes read since its last call

        Raises:
            MissingInputError: if it does not exist or cannot be read.
            DataError: if the compressed file is truncated or damaged, or if it changes while it is read.
        """
        with closing(self._file.stored(self._state)) as stored:
            yield from _joined(decompressed(stored if report is None else _reported(stored, report), self.url))


def _reported(blocks: Iterator[bytes], report: Callable[[int], None]) -> Iterator[bytes]:
    for block in blocks:
        report(len(block))
        yield block


def _joined(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks, small ones joined."""
    small: list[bytes] = []
    length = 0
    for block in blocks:
        small.append(block)
        length += len(block)
        if length >= BLOCK:
            yield b"".join(small) if len(small) > 1 else block
            small, length = [], 0
    if small:
        yield b"".join(small)
