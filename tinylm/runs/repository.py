"""The state of a git repository: commit, local changes and untracked files.

Nothing is written or locked. Without git, outside a repository, or if git does not answer, the state is unknown.
"""

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from tinylm.locate import PACKAGE

MOST_DIFF = 1 << 20  # bytes; a longer diff is not kept
SECONDS = 10.0  # for one call of git


@dataclass(frozen=True)
class Repository:
    """A repository as it is now.

    Attributes:
        root: its top folder
        commit: the commit of HEAD; None before the first commit
        changed: names of tracked files that differ from the commit; None if unknown
        diff: the differences, for `git apply`; None if they are too long
        untracked: names of files and folders that git neither tracks nor ignores
    """

    root: Path
    commit: str | None
    changed: tuple[str, ...] | None
    diff: bytes | None
    untracked: tuple[str, ...]


def find_repository(folder: str | Path) -> Repository | None:
    """The repository of a folder; None if there is none, or no git."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(os.fsdecode(top.removesuffix(b"\n")))
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD")
    return Repository(
        root,
        None if commit is None else commit.decode().strip(),
        _names(_git(root, "diff", "--no-ext-diff", "--name-only", "-z", "HEAD")),
        None if diff is None or len(diff) > MOST_DIFF else diff,
        _names(_git(root, "ls-files", "--others", "--exclude-standard", "--directory", "-z")) or (),
    )


def own_repository() -> Repository | None:
    """The repository of tinylm itself, if it is used from a clone."""
    tracked = _git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py")
    return None if tracked is None else find_repository(PACKAGE)


def has_commit(root: Path, commit: str) -> bool:
    """Whether a repository has a commit."""
    return _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _names(output: bytes | None) -> tuple[str, ...] | None:
    return None if output is None else tuple(name.decode("utf-8", "replace") for name in output.split(b"\0") if name)


def _git(folder: str | Path, *words: str) -> bytes | None:
    """The output of a git command, cut after `MOST_DIFF` + 1 bytes; None if it fails or takes too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set in hooks
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-C", str(folder), *words]
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=environment)
    except OSError:
        return None
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            output = process.stdout.read(MOST_DIFF + 1)
            if too_long := len(output) > MOST_DIFF:
                process.kill()
    finally:
        timer.cancel()
    return output if process.returncode == 0 or too_long else None
