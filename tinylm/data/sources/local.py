"""A local file: its bytes, checked not to change, and its SHA-256, which is remembered."""

import hashlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tinylm.data.sources.memory import remembered
from tinylm.data.web import ChangedError, State
from tinylm.errors import MissingInputError
from tinylm.files import open_input, why_unreadable

BLOCK = 1 << 18  # bytes


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine.

    Attributes:
        path: its path
        cache_dir: the folder that remembers fingerprints; None for the default
    """

    path: str
    cache_dir: Path | None

    def state(self) -> State:
        """Size, and the time of modification as the version."""
        if problem := why_unreadable(self.path):
            raise MissingInputError(f"{self.path}: {problem}")
        return _state(os.stat(self.path))  # noqa: PTH116

    def fingerprint(self, state: State, report: Callable[[int], None] | None = None) -> str:
        """The SHA-256 of its bytes; `report` receives the number of bytes read since its last call."""
        return remembered(self.path, "sha256", lambda: self._sha256(state, report), self.cache_dir)

    def _sha256(self, state: State, report: Callable[[int], None] | None) -> str:
        digest = hashlib.sha256()
        for block in self.stored(state):
            digest.update(block)
            if report is not None:
                report(len(block))
        return digest.hexdigest()

    def open(self, state: State) -> BinaryIO:
        """Opens it, unless it has changed."""
        file = open_input(Path(self.path))
        now = _state(os.fstat(file.fileno()))
        if now.differs(state):
            file.close()
            raise ChangedError(self.path, state, now)
        return file

    def stored(self, state: State) -> Generator[bytes, None, None]:
        """Its bytes in blocks; DataError if it changes meanwhile."""
        with self.open(state) as file:
            while block := file.read(BLOCK):
                yield block
            now = _state(os.fstat(file.fileno()))
            if now.differs(state):
                raise ChangedError(self.path, state, now)


def _state(status: os.stat_result) -> State:
    return State(status.st_size, str(status.st_mtime_ns))
