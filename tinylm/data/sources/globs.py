"""The files of a corpus: of a path or a glob, each once."""

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from tinylm.errors import MissingInputError, notice
from tinylm.files import why_unreadable

SEPARATOR = r"[/\\]" if os.sep == "\\" else "/"
ANY_FOLDERS = re.compile(rf"(?:^|(?<={SEPARATOR}))\*\*(?:{SEPARATOR}|$)")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".tex", ".org", ".text", ".markdown")


def find_files(source: str) -> list[Path]:
    """The files of a path or glob, sorted by name; an empty list if there are none.

    Names that have brackets are taken as they are if that finds anything, else brackets are those of a glob. A file
    that several links lead to is listed once.

    Raises:
        MissingInputError: for a folder, a broken link, or a file that cannot be read.
    """
    pattern = os.path.expanduser(source)  # noqa: PTH111 (Path would change `~` within a glob)
    if os.path.isfile(pattern):  # noqa: PTH113 (Path raises for an overlong name)
        return [Path(pattern)]
    if os.path.isdir(pattern):  # noqa: PTH112
        raise MissingInputError(f"data.corpus: {source}: is a folder; {_advice(source, pattern)}")
    if "\0" in pattern:
        return []
    found = _expand(pattern.replace("[", "[[]")) or _expand(pattern)
    files = [path for path in found if os.path.isfile(path)]  # noqa: PTH113
    for path in {pattern, *found}.difference(files):
        problem = why_unreadable(path)
        if problem and not problem.startswith(("no such", "is a folder")):
            raise MissingInputError(f"data.corpus: {path}: {problem}")
    each: dict[str, str] = {}
    real = cache(os.path.realpath)  # of folders
    for path in sorted(files, key=lambda path: (os.path.islink(path), path)):  # noqa: PTH114
        folder, name = os.path.split(path)
        whole = os.path.realpath(path) if os.path.islink(path) else os.path.join(real(folder), name)  # noqa: PTH114, PTH118
        each.setdefault(whole, path)
    if len(each) < len(files):
        notice(f"{source}: {len(files) - len(each)} links to files that are there already are left out")
    return [Path(path) for path in sorted(each.values())]


def _expand(pattern: str) -> list[str]:
    """The paths that a glob matches. `**` enters every folder once, also if links form a circle."""
    recursive = ANY_FOLDERS.search(pattern)
    if recursive is None:
        return glob.glob(pattern)
    within = pattern[recursive.end() :] or "*"
    folders = _folders(pattern[: recursive.start()])
    return [path for folder in folders for path in _expand(os.path.join(glob.escape(folder), within))]  # noqa: PTH118


def _folders(above: str) -> Iterator[str]:
    """The folders that a glob matches and all below, without hidden ones; near ones first."""
    waiting, entered = deque(glob.glob(above) if above else [""]), set()
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in entered:
            continue
        entered.add(real)
        yield folder
        try:
            names = sorted(name for name in os.listdir(real) if not name.startswith("."))  # noqa: PTH208
        except PermissionError as error:
            raise MissingInputError(f"data.corpus: {folder}: cannot be read ({error.strerror})") from error
        paths = [os.path.join(folder, name) for name in names]  # noqa: PTH118
        waiting.extend(path for path in paths if os.path.isdir(path))  # noqa: PTH112


def _advice(source: str, folder: str) -> str:
    """The glob of texts to write in place of a folder."""
    names = islice((name for _, _, names in os.walk(folder) for name in names), 10_000)
    counts = Counter(suffix for name in names if (suffix := Path(name).suffix).lower() in TEXT_SUFFIXES)
    suffix = counts.most_common(1)[0][0] if counts else ".txt"
    return f"name its files, in quotes: '{Path(source).as_posix()}/**/*{suffix}'"
