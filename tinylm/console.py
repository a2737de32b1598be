"""What scripts have in common: options and errors of one line, exit codes, and text that any console takes."""

import argparse
import os
import sys
from collections.abc import Callable

from tinylm.errors import ConfigError, TinyLMError


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without abbreviations."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str):
        """Raises instead of printing the usage."""
        raise ConfigError(message)


def exit_code(run: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Runs a script with its arguments, and prints an error of ours on one line.

    Args:
        run: the script
        arguments: of the command line; with `--debug` among them an error shows where it came from

    Returns:
        the exit code
    """
    try:
        run([word for word in arguments if word != "--debug"])
        return 0
    except TinyLMError as error:
        if "--debug" in arguments:
            raise
        print(f"tinylm: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_as_script(main: Callable[[list[str]], int]) -> None:
    """Ends the process with what `main` returns for its arguments."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # Windows consoles
    sys.exit(main(sys.argv[1:]))
