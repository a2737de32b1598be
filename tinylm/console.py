"""What scripts have in common: options and errors of one line, exit codes, and text that any console takes."""

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from tinylm.errors import ConfigError, TinyLMError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without abbreviations."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, allow_abbrev=False)

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Reads the options, which of several words may be written with `-` or `_`.

        Raises:
            ConfigError: for one that is unknown or wrong.
        """
        options, unknown = self.parse_known_args([_dashed(word) for word in arguments])
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f"{unknown[0]}: no such option{did_you_mean(unknown[0], known) or '; --help lists all'}")
        return options

    def error(self, message: str):
        """Raises instead of printing the usage."""
        raise ConfigError(message)


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def pick_device(name: str) -> str:
    """The device of a name; of `auto` the fastest: cuda, else mps, else cpu.

    Raises:
        ConfigError: if it is unknown or not there.
    """
    import torch  # which scripts that need no network do without

    if name == "auto":
        fast = [(torch.cuda.is_available, "cuda"), (torch.backends.mps.is_available, "mps")]
        return next((device for is_there, device in fast if is_there()), "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error
    return name


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


_stop_wanted = False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt at the next `check_interrupt`, the second one at once.

    Python's own handler raises it wherever the program happens to be, and in a finalizer, the callback of a weak
    reference or that of a C library it is printed and lost. Where Ctrl-C is handled otherwise already, and in threads
    other than the main one, which alone may set handlers, nothing is changed.

    Raises:
        KeyboardInterrupt: at the end, after a Ctrl-C that no check has come upon.
    """
    global _stop_wanted
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or earlier is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: object) -> None:
        global _stop_wanted
        _stop_wanted = True
        signal.signal(signal.SIGINT, earlier)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
        unheard, _stop_wanted = _stop_wanted, False
    if unheard:
        raise KeyboardInterrupt


def check_interrupt() -> None:
    """Raises KeyboardInterrupt after a Ctrl-C in `interruptible`: loops call it at each token."""
    if _stop_wanted and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def run_as_script(main: Callable[[list[str]], int]) -> None:
    """Ends the process with what `main` returns for its arguments; a crash in compiled code names its Python line."""
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # Windows consoles
    sys.exit(main(sys.argv[1:]))


def table(lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns, the first ones to the left, the others to the right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        texts = [cell.ljust(width) for cell, width in zip(cells[:left], widths[:left], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[left:], widths[left:], strict=True)]
        return "  ".join([*texts, *numbers]).rstrip()

    return "\n".join(map(line, lines))
