"""Facts about local files, remembered until the files change.

One SQLite database in the cache folder. A file is known by its absolute path, size, time of modification and inode, as
in git's index. As there, a file written to within the last two seconds is not remembered: on a file system that counts
whole seconds, it could change again without any of these changing. The database is optional: if it cannot be read or
written, the file is read again.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError
from tinylm.files import default_cache_dir

NAME = "files.sqlite"
SMALL = 1 << 18  # bytes; reading a smaller file is as fast as looking it up
RACY = 2_000_000_000  # ns
WAIT = 1.0  # seconds for the lock of another process
TABLE = """CREATE TABLE IF NOT EXISTS files (
    path BLOB, kind TEXT, size INTEGER, mtime_ns INTEGER, inode INTEGER, value TEXT, PRIMARY KEY (path, kind))"""


def remembered(path: str | Path, kind: str, compute: Callable[[], Any], cache_dir: Path | None = None) -> Any:
    """The value of `compute` for the current content of a file, computed or remembered.

    Args:
        path: the file, on which alone the value depends
        kind: what the value is, and everything else that it depends on
        compute: reads the file; its value can be written as JSON
        cache_dir: the cache folder; by default that of `TINYLM_CACHE`
    """
    try:
        state, folder = _state(path), cache_dir or default_cache_dir()
    except (OSError, ConfigError):
        return compute()
    if state[0] < SMALL:
        return compute()
    key, begun = (os.fsencode(os.path.abspath(path)), kind), time.time_ns()  # noqa: PTH100 (links are not followed)
    found = _look_up(folder, key, state)
    if found is not None:
        return found[0]
    value = compute()
    with contextlib.suppress(OSError):
        if _state(path) == state and state[1] < begun - RACY:
            _record(folder, key, state, value)
    return value


def _state(path: str | Path) -> tuple[int, int, int]:
    """Size, time of modification and inode."""
    status = os.stat(path)  # noqa: PTH116 (takes both types)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _look_up(folder: Path, key: tuple[bytes, str], state: tuple[int, int, int]) -> tuple[Any] | None:
    """The remembered value, in a tuple; None if there is none."""
    if not (folder / NAME).is_file():
        return None
    query = "SELECT value FROM files WHERE path = ? AND kind = ? AND size = ? AND mtime_ns = ? AND inode = ?"
    row = _execute(folder / NAME, "ro", (query, (*key, *state)))
    with contextlib.suppress(ValueError):
        return (json.loads(row[0]),) if row else None


def _record(folder: Path, key: tuple[bytes, str], state: tuple[int, int, int], value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    insert = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)"
    _execute(folder / NAME, "rwc", (TABLE, ()), (insert, (*key, *state, json.dumps(value))))


def _execute(path: Path, mode: str, *statements: tuple[str, tuple]) -> tuple | None:
    """The first row of the last statement; None after any error. A damaged database is removed."""
    row = None
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, timeout=WAIT, uri=True)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # a power failure may damage it: it is then removed
            for statement, values in statements:
                row = database.execute(statement, values).fetchone()
    except sqlite3.OperationalError:  # locked, read-only, no such table
        return None
    except sqlite3.Error:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return row
