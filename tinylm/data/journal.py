"""Append-only files that survive a kill and can be continued."""

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from tinylm.files import read_json, write_json

JOURNAL_EVERY = 64 << 20  # bytes written between two updates of the journal


class JournaledFiles:
    """Append-only files in one folder that are written together, entry by entry, and can be continued after a kill.

    After every `JOURNAL_EVERY` bytes, the files are flushed to disk, and the number of entries, the sizes and the CRCs
    are recorded in `journal.json`. Reopening the folder truncates the files to the recorded state. If they do not match
    it, all files start empty.

    Args:
        folder: the folder of the files
        names: the names of the files

    Attributes:
        entries: number of entries written
        sizes: size of each file in bytes
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._journal, self._unrecorded = folder / "journal.json", 0
        self.entries, self.sizes, self._crcs = 0, dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # the journal is missing or damaged
            entries, sizes, crcs = (read_json(self._journal)[key] for key in ("entries", "sizes", "crcs"))
            if all(_crc_of_first(folder / name, sizes[name]) == crcs[name] for name in names):
                self.entries, self.sizes, self._crcs = entries, sizes, crcs
        self._files = {name: (folder / name).open("ab") for name in names}
        for name, file in self._files.items():
            file.truncate(self.sizes[name])

    def add(self, entry: dict[str, bytes]) -> None:
        """Adds an entry: file name -> bytes to append."""
        for name, data in entry.items():
            self._files[name].write(data)
            self.sizes[name] += len(data)
            self._crcs[name] = zlib.crc32(data, self._crcs[name])
            self._unrecorded += len(data)
        self.entries += 1
        if self._unrecorded >= JOURNAL_EVERY:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            write_json(self._journal, {"entries": self.entries, "sizes": self.sizes, "crcs": self._crcs})
            self._unrecorded = 0

    def finish(self) -> None:
        """Closes the files and deletes the journal."""
        self.close()
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def _crc_of_first(path: Path, size: int) -> int:
    """Returns the CRC of the first `size` bytes of a file, or -1 if the file is shorter."""
    crc = 0
    with path.open("rb") as file:
        while size > 0:
            block = file.read(min(size, 1 << 20))
            if not block:
                return -1
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
