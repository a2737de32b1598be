"""What the commands have in common: options and errors of one line, exit codes, and text that any console takes."""

import argparse
import contextlib
import faulthandler
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tinylm.errors import ConfigError, TinyLMError, did_you_mean, notice
from tinylm.locate import find_model, newest_run


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without abbreviations.

    Args:
        command: the words behind `tinylm`, for the usage
        description: what the command does; its lines stay as they are
    """

    def __init__(self, command: str, description: str | None) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"tinylm {command}", description=description, allow_abbrev=False, formatter_class=raw)
        self.add_argument("--debug", action="store_true", help="show where an error comes from")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Reads the options, which of several words may be written with `-` or `_`.

        Raises:
            ConfigError: for one that is unknown or wrong.
        """
        end = arguments.index("--") if "--" in arguments else len(arguments)
        options, unknown = self.parse_known_args([*map(_dashed, arguments[:end]), *arguments[end:]])
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            raise ConfigError(f"{unknown[0]}: no such option{did_you_mean(unknown[0], known) or '; --help lists all'}")
        return options

    def format_help(self) -> str:
        """The help, with a usage of one line: the options are listed below it anyway."""
        names = {action.dest: action.nargs for action in self._actions if not action.option_strings}
        words = [f"[{name}]" if nargs in ("?", "*") else name for name, nargs in names.items()]
        self.usage = " ".join(["%(prog)s", *words, "[options]"])
        return super().format_help()

    def error(self, message: str):
        """Raises instead of printing the usage."""
        raise ConfigError(f"{message}; {self.prog} --help explains them" if "are required" in message else message)


def _dashed(word: str) -> str:
    """An option's name with `-` for `_`; anything else as it is."""
    return re.sub(r"\A--\w[\w-]*(?=\Z|=)", lambda found: found.group().replace("_", "-"), word)


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


def add_model_option(parser: Parser, what: str = "a run folder, a model folder or a checkpoint") -> None:
    """`--model`, which need not be given."""
    parser.add_argument("--model", help=f"{what} (the newest run in runs/)")


def announce_model(given: str | None) -> tuple[str, Path]:
    """Finds a model and says which, before PyTorch is imported, which takes seconds.

    Args:
        given: `--model`; None: the newest run in runs/

    Returns:
        what was given, or that run; and the model folder or checkpoint that it stands for

    Raises:
        MissingInputError: if there is no model.
    """
    chosen = str(newest_run()) if given is None else given
    found = find_model(chosen)
    notice(f"loading {found}" + (", the newest run; --model takes another" if given is None else ""))
    return chosen, found


def exit_code(run: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Runs a command with its arguments, and prints an error on one line.

    Args:
        run: the command; it may return an exit code of its own
        arguments: of the command line; with `--debug` among them an error shows where it came from

    Returns:
        the exit code
    """
    try:
        code = run(arguments) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        ours = isinstance(error, TinyLMError)
        message = str(error) if ours else f"{type(error).__name__}: {error}; --debug shows where"
        print(f"tinylm: error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
        return error.exit_code if ours else TinyLMError.exit_code


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


def process_rank() -> int:
    """This process's number among those of its job, as whoever started it says; 0 where it is alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # torchrun's, Lightning's own launcher's, srun's
        if os.environ.get(name):
            return int(os.environ[name])
    return 0


def prepare_process() -> None:
    """UTF-8 on any console, and the Python line of a crash inside a kernel."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        faulthandler.enable()


def table(lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns, the first ones to the left, the others to the right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        texts = [cell.ljust(width) for cell, width in zip(cells[:left], widths[:left], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[left:], widths[left:], strict=True)]
        return "  ".join([*texts, *numbers]).rstrip()

    return "\n".join(map(line, lines))
