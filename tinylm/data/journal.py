"""Files that are written for a long time, and gone on with after a kill."""

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from tinylm.files import read_json, write_json

JOURNAL_EVERY = 64 << 20  # bytes


class JournaledFiles:
    """Files of one folder that grow together, entry by entry, and can be gone on with after a kill.

    Now and then all is flushed to the disk, and the number of entries, the sizes and the CRCs go into `journal.json`.
    Who opens the folder again gets the files as they were then; if they are not as noted, they are empty.

    Args:
        folder: where they are
        names: of the files

    Attributes:
        entries: how many are in the files
        sizes: bytes in each file
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._journal, self._unnoted = folder / "journal.json", 0
        self.entries, self.sizes, self._crcs = 0, dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or not a whole one
            entries, sizes, crcs = (read_json(self._journal)[key] for key in ("entries", "sizes", "crcs"))
            if all(_crc_of_first(folder / name, sizes[name]) == crcs[name] for name in names):
                self.entries, self.sizes, self._crcs = entries, sizes, crcs
        self._files = {name: (folder / name).open("ab") for name in names}
        for name, file in self._files.items():
            file.truncate(self.sizes[name])

    def add(self, entry: dict[str, bytes]) -> None:
        """Adds an entry: what comes to the end of which files."""
        for name, data in entry.items():
            self._files[name].write(data)
            self.sizes[name] += len(data)
            self._crcs[name] = zlib.crc32(data, self._crcs[name])
            self._unnoted += len(data)
        self.entries += 1
        if self._unnoted >= JOURNAL_EVERY:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            write_json(self._journal, {"entries": self.entries, "sizes": self.sizes, "crcs": self._crcs})
            self._unnoted = 0

    def finish(self) -> None:
        """Ends the files: there is no journal any more."""
        self.close()
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def _crc_of_first(path: Path, size: int) -> int:
    """The CRC of the first bytes of a file; -1 if it has not so many."""
    crc = 0
    with path.open("rb") as file:
        while size > 0:
            block = file.read(min(size, 1 << 20))
            if not block:
                return -1
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
