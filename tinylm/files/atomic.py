"""Files and folders that appear only when complete.

A new file is written beside its target, flushed to disk and renamed over it. A reader, or the next run after a power
failure, sees either the old content or the new, never a part. All temporary names begin with `.tmp-`; `sweep` removes
those that a killed process left behind.
"""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tinylm.errors import CannotCreateError, StorageError, TinyLMError, disk_problem

TEMPORARY = ".tmp-"


def _temporary(target: Path) -> Path:
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}-{os.urandom(4).hex()}")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Converts an OSError while writing `path` to a TinyLMError that names the path and has an exit code."""
    try:
        yield
    except TinyLMError:
        raise
    except OSError as error:
        refused = isinstance(error, PermissionError | NotADirectoryError | FileNotFoundError | FileExistsError)
        if refused or error.errno == errno.EROFS:
            raise CannotCreateError(
                f"{path}: cannot be created ({error.strerror}); choose a folder you can write"
            ) from error
        raise not_written(path, str(error.strerror)) from error


def not_written(path: Path, reason: str) -> StorageError:
    """The error for a file that a full or failing disk has kept from being written."""
    rest = "the previous content is intact" if path.exists() else "free some space and try again"
    return StorageError(f"{path}: could not be written ({reason}); {rest}")


@contextlib.contextmanager
def full_disk(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """Converts an error that a full or failing disk has caused, whatever its type, to a StorageError; no other.

    Args:
        path: the file or folder that is written, for the message
        temporary: where it is written; its size is the number of bytes in the message
    """
    try:
        yield
    except Exception as error:
        problem = disk_problem(error)
        if problem is None or (isinstance(error, TinyLMError) and str(temporary) not in str(error)):
            raise
        size = "" if temporary is None else f", after {_size(temporary):,} bytes"
        raise not_written(Path(path), problem + size) from error


def _size(path: Path) -> int:
    """Bytes in a file, or in all files below a folder."""
    return sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())


def make_folder(path: str | Path) -> Path:
    """Creates a folder, and its parents, if missing.

    Raises:
        CannotCreateError: if the folder cannot be created.
    """
    path = Path(path)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _sync_folder(path: Path) -> None:
    """Flushes renames inside `path` to disk. (Windows has no such call and needs none.)"""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_files(folder: Path) -> None:
    """Flushes all files below `folder` to disk, and gives them the folder's permissions.

    Libraries create files readable by their owner alone; the folder was created under the user's umask.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a temporary binary file that replaces `path` when the block ends, and is deleted if the block raises.

    Raises:
        CannotCreateError: if the file cannot be created.
        StorageError: if the disk is full or fails; the previous content of `path` is kept.
    """
    path = Path(path)
    temporary = _temporary(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("w+b")
    try:
        with full_disk(path, temporary), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with storage_errors(path):
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file atomically, without newline translation."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, data: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Creates a temporary folder that replaces `path` when the block ends, and is deleted if the block raises.

    Replacing an existing folder takes two renames. A kill between them leaves the old folder as `.old-<name>`, never a
    mixture, and the next call restores it first.
    """
    path = Path(path)
    temporary = _temporary(path)
    old = path.with_name(f".old-{path.name}")
    with storage_errors(path):
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        with full_disk(path, temporary):
            yield temporary
        with storage_errors(path):
            _sync_files(temporary)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sweep(folder: str | Path, older_than: float = 3600.0) -> list[Path]:
    """Removes temporary files and folders left behind by killed processes.

    Args:
        folder: the folder to clean; subfolders are not searched
        older_than: minimum age in seconds; younger ones may still be in use

    Returns:
        the removed paths
    """
    removed = []
    for path in Path(folder).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed
