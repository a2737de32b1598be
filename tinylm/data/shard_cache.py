"""ShardCache: shards from a URL, verified, in a folder of bounded size that all processes of a machine share."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tinylm.data.sources import Source
from tinylm.errors import ConfigError, DataError
from tinylm.files import atomic_write, locked, make_folder, sha256_bytes, sweep

REQUEST = 1 << 23  # bytes
Opened = TypeVar("Opened")


class ShardCache:
    """Downloaded shards. If a new one does not fit, the least recently used ones are removed.

    A process that still reads a removed shard keeps it, since it has the file open.

    Args:
        folder: where they are kept
        most: limit on the total size, in bytes
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self._most = folder, most

    def open(self, url: str, size: int, sha256: str, opener: Callable[[Path], Opened]) -> Opened:
        """Opens a file, and downloads it first unless it is there.

        Args:
            url: its address
            size: its bytes
            sha256: its checksum, which is verified after a download
            opener: opens the file of a path

        Raises:
            ConfigError: if it alone is larger than the cache.
            MissingInputError: if it cannot be downloaded.
            DataError: if it is not the file of this checksum.
        """
        path = self.folder / f"{sha256[:16]}-{url.rpartition('/')[2]}"
        make_folder(self.folder)
        with locked(self.folder / ".lock"):
            if not (path.is_file() and path.stat().st_size == size):
                sweep(self.folder, older_than=0)  # of a killed process: this one has the lock
                self._make_room(url, size)
                self._download(url, path, size, sha256)
            os.utime(path)  # used now
            return opener(path)

    def fetch_small(self, url: str) -> Path:
        """Downloads the current version of a small file and returns its path."""
        path = self.folder / "small" / f"{sha256_bytes(url.encode())[:16]}-{url.rpartition('/')[2]}"
        with Source(url).open() as remote:
            data = remote.read()
        if not path.is_file() or path.read_bytes() != data:
            with atomic_write(path) as file:
                file.write(data)
        return path

    def _make_room(self, url: str, size: int) -> None:
        if size > self._most:
            raise ConfigError(
                f"data.max_cache_gb: {url} has {size / 1e9:.3g} GB, the cache {self._most / 1e9:.3g}; raise it"
            )
        files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.bin")]
        total = sum(each for _, each, _ in files)
        for _, each, path in sorted(files):
            if total + size <= self._most:
                break
            with contextlib.suppress(OSError):  # Windows keeps a file that is open
                path.unlink()
                total -= each

    def _download(self, url: str, path: Path, size: int, sha256: str) -> None:
        digest = hashlib.sha256()
        with Source(url).open() as remote, atomic_write(path) as file:
            while block := remote.read(REQUEST):
                digest.update(block)
                file.write(block)
            if file.tell() != size or digest.hexdigest() != sha256:
                raise DataError(f"{url}: is damaged (its SHA-256 is not that of the index); copy it there again")
