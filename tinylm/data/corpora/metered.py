"""The progress of reading a corpus, and the places that its documents come from.

A file may be read several times, for its hash and then for its text, or in parallel parts. Progress is the farthest
position read, in stored bytes, so no byte counts twice.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from tinylm.data.sources import Source
from tinylm.progress import ProgressBar


class Place(NamedTuple):
    """Where a document comes from: a file, or a record of a file, such as `line 12`."""

    file: str
    kind: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.number:,}" if self.kind else self.file


class Metered:
    """The base of all corpora that reports how far they have been read.

    Attributes:
        name: the value of `data.corpus`
        unit: of the amounts read: bytes of files as they are stored, or `texts`
        place: the place of the document that was read last; None if unknown
        num_empty: number of records without text that were left out so far
    """

    name: str
    unit: str = "B"
    place: Place | None = None
    num_empty: int = 0
    _bar: ProgressBar | None = None
    _reached: dict[str, int] | None = None

    def size(self, part: str | None = None) -> int | None:
        """The amount that is read for a part, or for all, in `unit`; None if unknown."""
        return None

    @contextmanager
    def reading(self, description: str, part: str | None = None) -> Iterator[ProgressBar]:
        """Shows how much of a part, or of all, has been read while the block runs."""
        size, outer = self.size(part), (self._bar, self._reached)
        with ProgressBar(f"{description} {self.name}", size, self.unit) as bar:
            self._bar, self._reached = bar, {}
            try:
                yield bar
            finally:
                self._bar, self._reached = outer

    def report(self, amount: int) -> None:
        """Notes that so much more has been read, in `unit`."""
        if self._bar is not None:
            self._bar.update(amount)

    def reach(self, file: str, position: int) -> None:
        """Notes that a file has been read up to a position."""
        if self._reached is not None and (more := position - self._reached.get(file, 0)) > 0:
            self._reached[file] = position
            self.report(more)

    def metered(self, sources: Iterable[Source]) -> list[Source]:
        """Sources whose reading is reported."""
        return [
            MeteredSource(each.url, cache_dir=each.cache_dir, reach=self.reach) if type(each) is Source else each
            for each in sources
        ]


def total_size(sources: Iterable[Source]) -> int | None:
    """Bytes of files as they are stored; None if the size of one is unknown."""
    sizes = [source.size for source in sources]
    return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True)
class MeteredSource(Source):
    """A Source that reports how far it has been read, to `reach(url, position)`."""

    reach: Callable[[str, int], None] = field(kw_only=True, compare=False, repr=False)

    def blocks(self, report: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """The content, as in `Source`."""
        return super().blocks(report or self._counter())

    def fingerprint(self, report: Callable[[int], None] | None = None) -> str:
        """The fingerprint, as in `Source`."""
        return super().fingerprint(report or self._counter())

    def _counter(self) -> Callable[[int], None]:
        """A function that adds up the bytes read, from the beginning of the file."""
        position = 0

        def count(amount: int) -> None:
            nonlocal position
            position += amount
            self.reach(self.url, position)

        return count

    def open(self) -> BinaryIO:
        """The file as it is stored, as in `Source`; the bytes read from it are added up, wherever they are."""
        return _CountingFile(super().open(), self._counter())  # pyright: ignore[reportReturnType]


class _CountingFile(io.RawIOBase):
    """A file that reports the bytes read from it."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report = file, report

    def read(self, size: int = -1) -> bytes:
        """Reads bytes."""
        data = self._file.read(size)
        self._report(len(data))
        return data

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()
