"""What can go wrong, as one small tree of exceptions, and the exit code that each one ends the program with.

An error message has three parts: what was wrong (a file or a field), how, and what to do about it.
The command line prints it on one line, `tinylm: error: <message>`, and exits with `exit_code`; nothing else in
the package knows exit codes. Configuration and data errors are `ValueError`s too, so that a Python user can catch
them without knowing this file.
"""

import difflib
import sys
from collections.abc import Iterable


class TinyLMError(Exception):
    """The root of the tree: something failed inside. Exit code 70."""

    exit_code = 70


class ConfigError(TinyLMError, ValueError):
    """A configuration or an argument that cannot be meant. Exit code 2."""

    exit_code = 2


class DataError(TinyLMError, ValueError):
    """Input that exists and is wrong: empty, not UTF-8, corrupt. Exit code 65."""

    exit_code = 65


class MissingInputError(TinyLMError, FileNotFoundError):
    """A corpus, config file, model or download that is not there. Exit code 66."""

    exit_code = 66


class NumericError(TinyLMError, ArithmeticError):
    """A loss or gradient that is not a finite number. Exit code 70."""


class CannotCreateError(TinyLMError, OSError):
    """A file or folder that cannot be made. Exit code 73."""

    exit_code = 73


class StorageError(TinyLMError, OSError):
    """Reading or writing failed midway: a full disk, a lost device. Exit code 74."""

    exit_code = 74


class Interrupted(TinyLMError):
    """Stopped by the user (SIGINT), with what was saved named in the message. Exit code 130."""

    exit_code = 130


class Preempted(TinyLMError):
    """Stopped by the system (SIGTERM) and ready to be resumed. Exit code 75."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str], foreign: dict[str, str] | None = None) -> str:
    """`", did you mean 'x'?"` for the known word that `word` resembles or that `foreign` maps it to, else `""`.

    >>> did_you_mean("num_layer", ["num_layers", "num_heads"])
    ", did you mean 'num_layers'?"
    """
    known = list(known)
    translated = (foreign or {}).get(word)
    close = [translated] if translated in known else difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def notice(message: str) -> None:
    """Tells the user something in passing, on stderr, so that it never mixes with a program's output."""
    if not _silenced:
        print(f"tinylm: {message}", file=sys.stderr, flush=True)


def silence_notices() -> None:
    """From now on this process gives no notices: of several that do the same, one speaks."""
    global _silenced
    _silenced = True


_silenced = False
