"""Atomic writes, checksums and locks, for checkpoints, model folders, tokenizers and caches.

A new file is written beside its target, flushed to disk and renamed over it. A reader, or the next run after a power
failure, sees either the old content or the new, never a part. All temporary names begin with `.tmp-`; `sweep` removes
those that a killed process left behind.
"""

import codecs
import contextlib
import errno
import json
import os
import shutil
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinylm.errors import (
    CannotCreateError,
    ConfigError,
    DataError,
    MissingInputError,
    StorageError,
    TinyLMError,
    disk_problem,
)
from tinylm.recognize import refuse_records, text_begin, utf8_problem

if TYPE_CHECKING:
    import hashlib

TEMPORARY = ".tmp-"


def default_cache_dir() -> Path:
    """`$TINYLM_CACHE`, else `tinylm` in the user's cache folder; ConfigError for a user without a home folder."""
    if "TINYLM_CACHE" in os.environ:
        return Path(os.environ["TINYLM_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinylm"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder for the cache; set TINYLM_CACHE to a folder") from error


def _temporary(target: Path) -> Path:
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
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
        raise _not_written(path, str(error.strerror)) from error


def _not_written(path: Path, reason: str) -> StorageError:
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
        raise _not_written(Path(path), problem + size) from error


def _size(path: Path) -> int:
    """Bytes in a file, or in all files below a folder."""
    return sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())


def make_folder(path: str | Path) -> Path:
    """Creates a folder, and its parents, if missing.

    Raises:
        CannotCreateError: if the folder cannot be created.
    """
    path = Path(path)
    with _storage_errors(path):
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
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("w+b")
    try:
        with full_disk(path, temporary), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _storage_errors(path):
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file atomically, without newline translation."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def append_text(path: str | Path, text: str) -> None:
    """Appends UTF-8 text to a file. After a failure the file is as before.

    Raises:
        CannotCreateError: if the file cannot be opened.
        StorageError: if the disk is full or fails.
    """
    path, data = Path(path), text.encode("utf-8")
    with _storage_errors(path), path.open("ab", buffering=0) as file:
        size, rest = file.seek(0, os.SEEK_END), data
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(size)
            raise _not_written(path, f"{error.strerror}, {len(data):,} bytes to append") from error


def replace_end(path: str | Path, old: str, new: str) -> bool:
    """Replaces the text with which a file ends; returns False if that is not `old`. After a failure nothing is changed.

    Raises:
        StorageError: if the disk is full or fails.
    """
    path, before, data = Path(path), old.encode("utf-8"), new.encode("utf-8")
    with _storage_errors(path), path.open("r+b", buffering=0) as file:
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
    with _storage_errors(Path(path)), Path(path).open("rb+") as file:
        os.fsync(file.fileno())


def write_json(path: str | Path, data: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: if the file is not JSON.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text; `source` is its name in the DataError for any other text."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not valid JSON ({error})") from error


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Creates a temporary folder that replaces `path` when the block ends, and is deleted if the block raises.

    Replacing an existing folder takes two renames. A kill between them leaves the old folder as `.old-<name>`, never a
    mixture, and the next call restores it first.
    """
    path = Path(path)
    temporary = _temporary(path)
    old = path.with_name(f".old-{path.name}")
    with _storage_errors(path):
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        with full_disk(path, temporary):
            yield temporary
        with _storage_errors(path):
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


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return _sha256(data).hexdigest()


def _sha256(data: bytes = b"") -> "hashlib._Hash":
    import hashlib  # here, as for other imports in functions: a tokenizer trains without its 4 MB of OpenSSL

    return hashlib.sha256(data)


def sha256_json(data: Any) -> str:
    """SHA-256 of the canonical JSON of `data`, which does not depend on the order of keys."""
    return sha256_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode("utf-8"))


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; the file is read in blocks."""
    with Path(path).open("rb") as file:
        return _sha256_of_first(file, sys.maxsize)


_END_OF_ZIP = b"PK\x05\x06"  # last record of a zip archive: 22 bytes that end with the length of the comment
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64


def seal_zip(file: BinaryIO) -> None:
    """Appends the SHA-256 of a newly written zip archive to it, as the archive's comment.

    PyTorch's checkpoints are zip archives, and a flipped bit may load silently as a wrong weight; `check_seal` detects
    it. Zip readers ignore the comment, so a sealed archive remains an ordinary one.
    """
    file.seek(-22, os.SEEK_END)
    if file.read(4) != _END_OF_ZIP:
        raise ValueError("not a zip archive without a comment")
    file.seek(-2, os.SEEK_END)
    body = file.tell()
    file.seek(0)
    digest = _sha256_of_first(file, body)
    file.seek(body)
    file.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL + digest.encode("ascii"))


def check_seal(path: str | Path) -> None:
    """Verifies a zip archive by the SHA-256 of `seal_zip` or, without one (written by Lightning), by its CRCs.

    Raises:
        DataError: if the file is truncated, damaged, or not a zip archive.
    """
    path = Path(path)
    with path.open("rb") as file:
        body = path.stat().st_size - _SEAL_LENGTH - 2
        file.seek(max(body, 0))
        if body < 0 or file.read(2 + len(_SEAL)) != _SEAL_LENGTH.to_bytes(2, "little") + _SEAL:
            return _check_crcs(path)
        recorded = file.read().decode("ascii", "replace")
        file.seek(0)
        if _sha256_of_first(file, body) != recorded:
            raise DataError(f"{path}: is damaged (SHA-256 differs from the recorded one); use another checkpoint")


def _check_crcs(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # zipfile raises many different types for damaged archives
        raise DataError(f"{path}: is truncated or not a checkpoint ({error}); use another checkpoint") from error
    if bad is not None:
        raise DataError(f"{path}: is damaged (CRC of {bad} differs from the recorded one); use another checkpoint")


def _sha256_of_first(file: BinaryIO, size: int) -> str:
    digest = _sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds an exclusive lock on the lock file `path`; waits while another process holds it.

    The operating system releases the lock of a process that dies, so a killed holder blocks nobody.
    """
    import filelock

    path = Path(path)
    make_folder(path.parent)
    lock = filelock.FileLock(path)
    with _storage_errors(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def why_unreadable(path: str | Path) -> str | None:
    """The reason why a path cannot be read as a file; None if it is a file."""
    try:
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for an overlong name)
            return None
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
            return f"is a link to {os.readlink(path)}, which does not exist; repair or remove it"  # noqa: PTH115
        if os.path.isdir(path):  # noqa: PTH112
            return "is a folder; give a file"
        os.stat(path)  # noqa: PTH116
    except PermissionError as error:
        return f"cannot be read ({error.strerror}); change its permissions"
    except (OSError, ValueError):  # missing, too long, with a NUL
        pass
    return "no such file"


def file_size(path: Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        MissingInputError: if the file does not exist.
    """
    if problem := why_unreadable(path):
        raise MissingInputError(f"{path}: {problem}")
    return path.stat().st_size


def open_input(path: Path) -> BinaryIO:
    """Opens a file that the user has given, for reading.

    Raises:
        MissingInputError: if it does not exist or cannot be read.
    """
    if problem := why_unreadable(path):
        raise MissingInputError(f"{path}: {problem}")
    try:
        return path.open("rb")
    except PermissionError as error:
        raise MissingInputError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error


def read_range(path: Path, begin: int, end: int) -> bytes:
    """Reads the bytes of a file from `begin` up to `end`."""
    with open_input(path) as file:
        file.seek(begin)
        return file.read(end - begin)


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """Decodes UTF-8.

    Args:
        data: bytes that begin and end at character boundaries
        path: the file they come from, for the error message
        offset: their offset in that file

    Raises:
        DataError: if they are not valid UTF-8; the message gives the offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise utf8_problem(path, error, offset + error.start, "repair the file") from error


def read_chunks(
    path: Path,
    errors: str = "strict",
    digest: "hashlib._Hash | None" = None,
    *,
    records: bool = False,
    remedy: str = "repair the file",
    report: Callable[[int], object] | None = None,
) -> Iterator[str]:
    """Yields the text of a UTF-8 file in chunks of about a megabyte, without newline translation.

    `report` is called with the number of bytes read since the last call. The other arguments, and the errors, are those
    of `decode_blocks`.

    Raises:
        MissingInputError: if the file does not exist or cannot be read.
    """
    with open_input(path) as file:

        def blocks() -> Iterator[bytes]:
            while data := file.read(1 << 20):
                if report is not None:
                    report(len(data))
                yield data

        yield from decode_blocks(blocks(), path, errors, digest, records=records, remedy=remedy)


def decode_blocks(
    blocks: Iterable[bytes],
    path: Path,
    errors: str = "strict",
    digest: "hashlib._Hash | None" = None,
    *,
    records: bool = False,
    remedy: str = "repair the file",
) -> Iterator[str]:
    """Yields the UTF-8 text of blocks of bytes, without a byte order mark before it.

    Args:
        blocks: the content; the first block has at least `recognize.HEAD` bytes unless the content is shorter
        path: the file that they come from, for messages
        errors: that of `bytes.decode`
        digest: a hash object to update with the bytes of the text
        records: whether JSON is expected, which is refused otherwise
        remedy: what the error for invalid UTF-8 advises

    Raises:
        DataError: if the content is in another format, or not valid UTF-8 and `errors="strict"`; the message gives the
            format or the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0  # of the first byte not decoded yet
    for data in chain(blocks, [b""]):
        if not offset and data:
            if not records:
                refuse_records(path, data)
            offset = text_begin(path, data, errors)
            data = data[offset:]
            if not data:
                continue
        if digest is not None:
            digest.update(data)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise utf8_problem(path, error, offset + error.start, remedy) from error
        if text:
            yield text
        offset += pending + len(data) - len(decoder.getstate()[0])
