"""Runs a command and kills it right after a chosen call that changes a file: a write, fsync, rename, ..."""

import io
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import processes

Place = tuple[str, int]  # a call with its file, and the number of its occurrence, from 1
CHANGES = ("write", "fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate")


def place_name(call: str, path: str) -> str:
    """The call and the file's name without numbers of processes and hashes."""
    name = re.sub(r"-\d+-[0-9a-f]{8}$|(?<=tfevents).*", "", Path(path).name)
    return f"{call} {re.sub(r'[0-9a-f]{8,}|[0-9]{8}_[0-9]{6}', '*', name)}"


def watch_files(passed: Callable[[str, str], None]) -> None:
    """Calls `passed(call, path)` after each call of this process that changes a file."""

    class Watched(io.FileIO):
        def write(self, data: Any) -> int:
            written = super().write(data)
            passed("write", str(self.name))
            return written

    plain = io.open

    def watched_open(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or isinstance(file, int) or opener:
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Watched(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def watched(name: str) -> Callable:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            path = arguments[1] if name in ("replace", "rename") else arguments[0]
            passed(name, str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fspath(path))
            return result

        return call

    for name in CHANGES:
        setattr(os, name, watched(name))
    io.open = __builtins__["open"] = watched_open  # type: ignore[index]


def run_and_kill(words: list[str], folder: Path, kill_after: Place | None, log: Path | None) -> None:
    """Runs `tinylm WORDS` in a folder, with the output in `said.txt`; kills itself after `kill_after`.

    Args:
        words: the command line
        folder: current folder of the command
        kill_after: place at which to end
        log: file to list all places in
    """
    os.setsid()  # a group of its own, which is killed with it
    tempfile.tempdir = None  # read again from the environment
    process, seen, write = os.getpid(), Counter[str](), os.write
    folders = (str(folder), os.environ["TMPDIR"])
    listing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    def passed(call: str, path: str) -> None:
        inside = os.path.abspath(path).startswith(folders)  # noqa: PTH100 (links are kept)
        if os.getpid() != process or not inside or path.endswith("said.txt"):
            return
        place = place_name(call, path)
        seen[place] += 1
        if listing is not None:
            write(listing, f"{place}\n".encode())
        if (place, seen[place]) == kill_after:
            os.kill(process, signal.SIGKILL)

    watch_files(passed)
    processes.command_line(words, folder, folder / "said.txt")
