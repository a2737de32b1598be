"""Sources: the files of a corpus, local or behind a URL, compressed or not, as bytes.

What a file holds (a text, JSON records, a table) is not known here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tinylm.data.sources.globs import find_files
from tinylm.files import open_input, sha256_file

BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        url: a path, or a URL
    """

    url: str

    @property
    def suffix(self) -> str:
        """The suffix of the name in lower case, without that of a compression: `.jsonl` of `a.jsonl.zst`."""
        return PurePosixPath(self.url).suffix.lower()

    @property
    def size(self) -> int | None:
        """Bytes of the file as it is stored; None if unknown."""
        return Path(self.url).stat().st_size

    def fingerprint(self) -> str:
        """SHA-256 of the content, or of what stands for it: of a remote file its URL, size and version."""
        return sha256_file(self.url)

    def open(self) -> BinaryIO:
        """Opens the file as it is stored, to be read in any order.

        Raises:
            MissingInputError: if it does not exist or cannot be read.
        """
        return open_input(Path(self.url))

    def blocks(self) -> Iterator[bytes]:
        """The decompressed content in blocks of about a megabyte.

        Raises:
            MissingInputError: if it does not exist or cannot be read.
            DataError: if the compressed file is truncated or damaged.
        """
        with self.open() as file:
            while block := file.read(BLOCK):
                yield block


def find_sources(pattern: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[Source]:
    """The files of a path, glob, folder or URL, sorted by name; an empty list if there are none.

    Args:
        pattern: what `data.corpus` names
        include: patterns of the names to take from a folder, such as `*.md`
        exclude: patterns of the names to leave out
    """
    return [Source(str(path)) for path in find_files(pattern)]
