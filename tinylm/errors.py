"""The exceptions of tinylm, and the exit code with which each one ends the program.

An error message has three parts: the file or field, what is wrong with it, and the remedy. The command line prints it
on one line, `tinylm: error: <message>`, and exits with `exit_code`. Each exception is also the built-in one that fits
best, so that Python users can catch a `ValueError` without knowing this file.
"""

import difflib
import sys
from collections.abc import Iterable


class TinyLMError(Exception):
    """The base class, for an internal failure. Exit code 70."""

    exit_code = 70


class ConfigError(TinyLMError, ValueError):
    """Invalid configuration or argument. Exit code 2."""

    exit_code = 2


class DataError(TinyLMError, ValueError):
    """Invalid input: empty, not UTF-8, corrupt. Exit code 65."""

    exit_code = 65


class MissingInputError(TinyLMError, FileNotFoundError):
    """A missing corpus, config file or model, or a download that failed. Exit code 66."""

    exit_code = 66


class NumericError(TinyLMError, ArithmeticError):
    """A loss or gradient that is not finite. Exit code 70."""


class CannotCreateError(TinyLMError, OSError):
    """A file or folder that cannot be created. Exit code 73."""

    exit_code = 73


class StorageError(TinyLMError, OSError):
    """Reading or writing failed midway, as on a full disk. Exit code 74."""

    exit_code = 74


class Interrupted(TinyLMError):
    """Stopped by the user (SIGINT); the message names what was saved. Exit code 130."""

    exit_code = 130


class Preempted(TinyLMError):
    """Stopped by the system (SIGTERM), ready to be resumed. Exit code 75."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str], foreign: dict[str, str] | None = None) -> str:
    """A hint that names the known word closest to `word`, or the one that `foreign` maps it to; empty if there is none.

    >>> did_you_mean("num_layer", ["num_layers", "num_heads"])
    ", did you mean 'num_layers'?"
    """
    known = list(known)
    translated = (foreign or {}).get(word)
    close = [translated] if translated in known else difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


_silenced = False


def notice(message: str) -> None:
    """Prints a message for the user on stderr, apart from the program's output."""
    if not _silenced:
        print(f"tinylm: {message}", file=sys.stderr, flush=True)


def silence_notices() -> None:
    """Turns off the notices of this process, for all ranks of a job but one."""
    global _silenced
    _silenced = True
