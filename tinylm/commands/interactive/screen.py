"""Input and output of the prompt loop without a terminal: lines in, text out, nothing added."""

import contextlib
import io
import math
import sys
from collections.abc import Iterator

from tinylm.errors import notice


def at_terminal() -> bool:
    """Whether a person types the prompts and reads the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Screen:
    """Reads lines from stdin, which end with LF or CRLF as in a prompts file, and writes to stdout.

    Attributes:
        interactive: whether it is a terminal
    """

    interactive = False

    def __init__(self) -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="\n")

    @property
    def width(self) -> float:
        """Columns of the window."""
        return math.inf

    def read(self) -> str:
        """The next prompt or command; EOFError at the end."""
        return input().removesuffix("\r")

    def write(self, piece: str) -> None:
        """Writes a piece of an answer."""
        print(piece, end="", flush=True)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Surrounds an answer, and ends its line."""
        yield
        print(flush=True)

    def say(self, message: str) -> None:
        """Prints a notice on stderr."""
        notice(message)

    def put(self, text: str) -> None:
        """Writes a text that may have colours, without an end of line."""
        print(text, end="", flush=True)

    def show(self, text: str) -> None:
        """Prints the output of a command."""
        print(text, flush=True)
