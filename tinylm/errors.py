"""The exceptions of tinylm, and the exit code with which each one ends the program.

An error message has three parts: the file or field, what is wrong with it, and the remedy. The command line prints it
on one line, `tinylm: error: <message>`, and exits with `exit_code`. Each exception also derives from the
best-fitting built-in one, so that Python users can catch a `ValueError` without knowing this file.
"""

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable


class TinyLMError(Exception):
    """The base class, for an internal failure."""

    exit_code = 70

    def __init_subclass__(cls, exit_code: int | None = None) -> None:
        cls.exit_code = exit_code or cls.exit_code


class ConfigError(TinyLMError, ValueError, exit_code=2):
    """Invalid configuration or argument."""


class DataError(TinyLMError, ValueError, exit_code=65):
    """Invalid input: empty, not UTF-8, corrupt."""


class InvalidTextError(DataError, exit_code=65):
    """Text that is not UTF-8."""


class MissingInputError(TinyLMError, FileNotFoundError, exit_code=66):
    """A missing corpus, config file or model, or a download that failed."""


class NumericError(TinyLMError, ArithmeticError, exit_code=70):
    """A loss or gradient that is not finite."""


class CannotCreateError(TinyLMError, OSError, exit_code=73):
    """A file or folder that cannot be created."""


class StorageError(TinyLMError, OSError, exit_code=74):
    """Reading or writing failed midway, as on a full disk."""


class Interrupted(TinyLMError, exit_code=130):
    """Stopped by the user (SIGINT); the message names what was saved."""


class Preempted(TinyLMError, exit_code=75):
    """Stopped by the system (SIGTERM), ready to be resumed."""


def did_you_mean(word: str, known: Iterable[str], foreign: dict[str, str] | None = None) -> str:
    """A hint that names the known word closest to `word`, or the one that `foreign` maps it to; empty if there is none.

    >>> did_you_mean("num_layer", ["num_layers", "num_heads"])
    ", did you mean 'num_layers'?"
    """
    known = list(known)
    translated = (foreign or {}).get(word)
    close = [translated] if translated in known else difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def disk_problem(error: BaseException | None) -> str | None:
    """The problem of the disk that caused an error, such as `No space left on device`; None for any other cause.

    PyTorch and zipfile raise their own errors while they handle the OSError, and safetensors quotes its number.
    """
    while error is not None:
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(quoted[1]) if quoted else None
        if number in FULL_DISK:
            return getattr(error, "strerror", None) or os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


_silenced = False


def notice(message: str) -> None:
    """Prints a message for the user on stderr, apart from the program's output."""
    if not _silenced:
        print(f"tinylm: {message}", file=sys.stderr, flush=True)


def silence_notices() -> None:
    """Turns off the notices of this process, for all ranks of a job but one."""
    global _silenced
    _silenced = True


def notices_silenced() -> bool:
    """Whether `silence_notices` was called in this process."""
    return _silenced


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
