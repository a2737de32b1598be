"""The sources of a path, a glob, a folder or a URL."""

import os
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tinylm.data.download import Download, download
from tinylm.data.sources.globs import RECORDS, TEXTS, check_readable, each_once, glob_files, walk
from tinylm.data.sources.remote import list_folder, list_glob
from tinylm.data.sources.source import Source, suffix_of
from tinylm.data.web import State
from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.files import default_cache_dir

SKIPPED = ("node_modules", "__pycache__")  # folders; hidden ones, such as .git, are skipped too


def find_sources(
    pattern: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), cache_dir: Path | None = None
) -> list[Source]:
    """The files of a path, glob, folder or URL, sorted by name; an empty list if there are none.

    A folder is read with all folders below it: its texts and records, recognized by their suffixes, or what `include`
    names. Hidden files and folders are left out. A single file at an HTTP address is downloaded to the cache once; all
    else at a URL is streamed.

    Args:
        pattern: what `data.corpus` names
        include: patterns of the names to take from a folder or glob, such as `*.md`. One without a slash matches a
            file's name, one with a slash its path below the folder, where `*` matches slashes too
        exclude: patterns of the names to leave out, also of folders
        cache_dir: the cache folder; by default that of `TINYLM_CACHE`

    Raises:
        MissingInputError: for a folder without such files, a broken link, or a file or URL that cannot be read.
        ConfigError: for `include` or `exclude` where there is nothing to choose from.
    """
    choice = Choice(pattern, tuple(include), tuple(exclude))
    scheme = pattern.partition("://")[0] if re.match(r"[a-z][a-z0-9+.-]*://", pattern) else None
    if scheme in ("http", "https") and "*" not in pattern and not pattern.endswith("/"):
        choice.refuse_patterns()
        return [Source(str(download(Download(pattern), cache_dir or default_cache_dir())), cache_dir=cache_dir)]
    if scheme not in (None, "file"):
        return [Source(url, cache_dir=cache_dir, listed=state) for url, state in _remote(pattern, choice)]
    path = pattern if scheme is None else url2pathname(urlsplit(pattern).path)
    return [Source(path, cache_dir=cache_dir) for path in _local(os.path.expanduser(path), choice)]  # noqa: PTH111


@dataclass
class Choice:
    """The files to take of a folder or glob, and counts of those left out.

    Attributes:
        pattern: what `data.corpus` names, for messages
        include, exclude: as in `find_sources`
        left_out: number of files by reason
        others: number of files of unknown kinds by suffix
        folders: number of folders that were not entered by name
        entered: whether a folder of a remote file system is entered
    """

    pattern: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    entered: dict[str, bool] = field(default_factory=dict)

    def refuse_patterns(self) -> None:
        """Raises ConfigError for patterns where a single file is named."""
        for option in ("include", "exclude"):
            if getattr(self, option):
                raise ConfigError(f"data.{option} chooses from a folder, and {self.pattern} is one file; leave it out")

    def enters(self, relative: str) -> bool:
        """Whether a folder below is entered; counts it as left out otherwise."""
        name = posixpath.basename(relative)
        if name.startswith("."):
            self.left_out["hidden"] += 1
        elif name in SKIPPED or _matches(relative, self.exclude):
            self.left_out["folders"] += 1
            self.folders[name] += 1
        else:
            return True
        return False

    def enters_all(self, relative: str) -> bool:
        """Whether all folders of a file are entered; each is counted once."""
        *folders, _ = relative.split("/")
        for folder in ("/".join(folders[: i + 1]) for i in range(len(folders))):
            if folder not in self.entered:
                self.entered[folder] = self.enters(folder)
            if not self.entered[folder]:
                return False
        return True

    def takes(self, relative: str, by_suffix: bool = True) -> bool:
        """Whether a file is taken; counts it as left out otherwise.

        Args:
            relative: its path below the folder, with slashes
            by_suffix: without `include`, only known suffixes are taken
        """
        suffix = suffix_of(relative)
        if posixpath.basename(relative).startswith(".") and by_suffix:
            self.left_out["hidden"] += 1
        elif _matches(relative, self.exclude):
            self.left_out["excluded"] += 1
        elif self.include and not _matches(relative, self.include):
            self.left_out["not included"] += 1
        elif not self.include and by_suffix and suffix not in (*TEXTS, *RECORDS):
            self.left_out["of other kinds"] += 1
            self.others[suffix or "no suffix"] += 1
        else:
            return True
        return False

    def check(self, found: list[str]) -> list[str]:
        """Says how many files were found and left out, and returns them; MissingInputError if there are none."""
        left_out = self._left_out()
        if not found:
            holds = f"it holds {left_out}" if left_out else "it is empty"
            raise MissingInputError(
                f"data.corpus: {self.pattern}: has no files of text or records ({holds}); name some with data.include"
            )
        counts = Counter(suffix_of(path) or "no suffix" for path in found)
        kinds = f" ({_by_count(counts)})" if len(counts) > 1 else ""
        if len(found) > 1 or left_out:
            files = "1 file" if len(found) == 1 else f"{len(found):,} files"
            notice(f"{self.pattern}: {files}{kinds}" + (f"; left out: {left_out}" if left_out else ""))
        return found

    def _left_out(self) -> str:
        kinds = {"of other kinds": f" ({_by_count(self.others)})", "folders": f" ({_by_count(self.folders)})"}
        return ", ".join(f"{count:,} {why}{kinds.get(why, '')}" for why, count in self.left_out.most_common())


def _by_count(counts: Counter[str]) -> str:
    """The five most frequent keys with their counts."""
    most = [f"{key} {count:,}" for key, count in counts.most_common(5)]
    return ", ".join(most + ["..."] * (len(counts) > 5))


def _matches(relative: str, patterns: tuple[str, ...]) -> bool:
    name = posixpath.basename(relative)
    return any(fnmatchcase(relative if "/" in pattern else name, pattern.rstrip("/")) for pattern in patterns)


def _local(path: str, choice: Choice) -> list[str]:
    """The local files of a path, glob or folder."""
    if os.path.isfile(path):  # noqa: PTH113 (Path raises for an overlong name)
        choice.refuse_patterns()
        return [path]
    if os.path.isdir(path):  # noqa: PTH112
        return choice.check(_in_folder(path, choice))
    found, links = glob_files(path)
    chosen = [each for each in found if choice.takes(Path(each).as_posix(), by_suffix=False)]
    if not found:
        return []
    choice.left_out.update({"links to files that are there already": links} if links else {})
    return choice.check(chosen)


def _in_folder(folder: str, choice: Choice) -> list[str]:
    """The files to take from a folder and all below."""

    def below(path: str) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    taken = []
    for each, names in walk([folder], lambda path: choice.enters(below(path))):
        paths = [os.path.join(each, name) for name in names]  # noqa: PTH118
        taken += [path for path in paths if not os.path.isdir(path) and choice.takes(below(path))]  # noqa: PTH112
    check_readable(path for path in taken if not os.path.isfile(path))  # noqa: PTH113
    files, links = each_once([path for path in taken if os.path.isfile(path)])  # noqa: PTH113
    choice.left_out.update({"links to files that are there already": links} if links else {})
    return files


def _remote(url: str, choice: Choice) -> list[tuple[str, State | None]]:
    """The URLs of a file, glob or folder of a file system that can list, and their states where these are listed."""
    if "*" in url:
        files = list_glob(url)
        chosen = [(each, state) for each, path, state in files if choice.takes(path, by_suffix=False)]
    else:
        files = list_folder(url)
        if files is None:
            choice.refuse_patterns()
            return [(url, None)]
        chosen = [(each, state) for each, path, state in files if choice.enters_all(path) and choice.takes(path)]
    if files or "*" not in url:
        choice.check([each for each, _ in chosen])
    return chosen
