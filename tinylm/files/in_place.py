"""Changes to the end of a file, which leave it unchanged if they fail; and locks."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tinylm.files.atomic import make_folder, not_written, storage_errors


def append_text(path: str | Path, text: str) -> None:
    """Appends UTF-8 text to a file. After a failure the file is as before.

    Raises:
        CannotCreateError: if the file cannot be opened.
        StorageError: if the disk is full or fails.
    """
    path, data = Path(path), text.encode("utf-8")
    with storage_errors(path), path.open("ab", buffering=0) as file:
        size, rest = file.seek(0, os.SEEK_END), data
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(size)
            raise not_written(path, f"{error.strerror}, {len(data):,} bytes to append") from error


def replace_end(path: str | Path, old: str, new: str) -> bool:
    """Replaces the text with which a file ends; returns False if that is not `old`. After a failure nothing is changed.

    Raises:
        StorageError: if the disk is full or fails.
    """
    path, before, data = Path(path), old.encode("utf-8"), new.encode("utf-8")
    with storage_errors(path), path.open("r+b", buffering=0) as file:
        start = file.seek(max(file.seek(0, os.SEEK_END) - len(before), 0))
        if file.read() != before:
            return False
        try:
            file.seek(start)
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate()
        except OSError:
            file.seek(start)
            file.write(before)
            file.truncate()
            raise
    return True


def sync_file(path: str | Path) -> None:
    """Flushes a file to disk."""
    with storage_errors(Path(path)), Path(path).open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds an exclusive lock on the lock file `path`; waits while another process holds it.

    The operating system releases the lock of a process that dies, so a killed holder blocks nobody.
    """
    import filelock

    path = Path(path)
    make_folder(path.parent)
    lock = filelock.FileLock(path)
    with storage_errors(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
