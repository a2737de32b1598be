"""Local files of globs and folders, each listed once even if links form a circle."""

import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from tinylm.errors import MissingInputError
from tinylm.files import why_unreadable

SEPARATOR = r"[/\\]" if os.sep == "\\" else "/"
TEXTS = (
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".py", ".js", ".ts", ".jsx", ".tsx", ".c",
    ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".kt", ".scala", ".go", ".rs", ".rb", ".php", ".pl", ".lua", ".r",
    ".jl", ".swift", ".cs", ".hs", ".ml", ".ex", ".clj", ".el", ".lisp", ".sh", ".sql", ".css",
    ".yaml", ".yml", ".toml",
)  # fmt: skip
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
ANY_FOLDERS = re.compile(rf"(?:^|(?<={SEPARATOR}))\*\*(?:{SEPARATOR}|$)")


def glob_files(pattern: str) -> tuple[list[str], int]:
    """The files of a glob, sorted by name, and the number of links left out because they lead to one of these files.

    A name with brackets is taken literally if such a file exists; otherwise the brackets are part of the glob.

    Raises:
        MissingInputError: for a broken link, or a file that cannot be read.
    """
    if "\0" in pattern:
        return [], 0
    found = _expand(pattern.replace("[", "[[]")) or _expand(pattern)
    files = [path for path in found if os.path.isfile(path)]  # noqa: PTH113 (Path raises for an overlong name)
    check_readable({pattern, *found}.difference(files))
    return each_once(files)


def check_readable(paths: Iterable[str]) -> None:
    """Raises MissingInputError for a broken link or an unreadable file among paths that are not files."""
    for path in paths:
        problem = why_unreadable(path)
        if problem and not problem.startswith(("no such", "is a folder")):
            raise MissingInputError(f"data.corpus: {path}: {problem}")


def each_once(files: list[str]) -> tuple[list[str], int]:
    """Files sorted by name without those that are links to others, and the number of the links."""
    each: dict[str, str] = {}
    real = cache(os.path.realpath)  # of folders
    for path in sorted(files, key=lambda path: (os.path.islink(path), path)):  # noqa: PTH114
        folder, name = os.path.split(path)
        whole = os.path.realpath(path) if os.path.islink(path) else os.path.join(real(folder), name)  # noqa: PTH114, PTH118
        each.setdefault(whole, path)
    return sorted(each.values()), len(files) - len(each)


def walk(above: Iterable[str], enter: Callable[[str], bool]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names in it) of folders and all below them, nearest first; each once, even if links form a circle.

    Args:
        above: the folders
        enter: whether to enter a folder below
    """
    waiting, entered = deque(above), set()
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in entered:
            continue
        entered.add(real)
        try:
            names = sorted(os.listdir(real))  # noqa: PTH208
        except PermissionError as error:
            raise MissingInputError(f"data.corpus: {folder}: cannot be read ({error.strerror})") from error
        yield folder, names
        paths = [os.path.join(folder, name) for name in names]  # noqa: PTH118
        waiting.extend(path for path in paths if os.path.isdir(path) and enter(path))  # noqa: PTH112


def is_hidden(path: str) -> bool:
    """Whether the last part of a path begins with a dot."""
    return os.path.basename(path).startswith(".")  # noqa: PTH119


def _expand(pattern: str) -> list[str]:
    """The paths that a glob matches. `**` enters every folder that is not hidden once."""
    recursive = ANY_FOLDERS.search(pattern)
    if recursive is None:
        return glob.glob(pattern)
    above, within = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
    folders = walk(glob.glob(above) if above else [""], lambda path: not is_hidden(path))
    return [path for folder, _ in folders for path in _expand(os.path.join(glob.escape(folder), within))]  # noqa: PTH118
