"""Shared by all commands: options, one-line errors and exit codes, Ctrl-C, tables and terminal colours."""

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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylm.errors import (
    ConfigError,
    Interrupted,
    Preempted,
    StorageError,
    TinyLMError,
    did_you_mean,
    disk_problem,
    notice,
)
from tinylm.locate import STORYTELLER, command, find_model, newest_run
from tinylm.plugins import trust_code

THEME, THEMES = "TINYLM_THEME", ("light", "dark")
"""The environment variable that chooses the theme of pictures, and the themes."""

# --- options


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks, and adds the defaults of options that do not name theirs."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = isinstance(action.default, str | int | float | Path) and not isinstance(action.default, bool)
        named = not action.help or "default" in action.help or action.default in ("", argparse.SUPPRESS)
        return action.help if named or not plain else f"{action.help} (default: %(default)s)"


@dataclass(frozen=True)
class Mode:
    """A way to run a command in which some of its options have no meaning.

    Attributes:
        name: "with" or "without" and what it is about, such as `with --num-beams`
        unused: names of the options that it does not use
        active: whether parsed arguments choose this mode. None: they do with, or without, the option in the name
    """

    name: str
    unused: Collection[str]
    active: Callable[[argparse.Namespace], bool] | None = None


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviations.

    Args:
        command: the words after `tinylm`
        description: the help text
        modes: the options that a mode does not use are refused by name
    """

    def __init__(self, command: str, description: str | None, modes: Iterable[Mode] = ()) -> None:
        name, form, self._modes = f"tinylm {command}", _HelpFormatter, modes
        super().__init__(prog=name, description=description, allow_abbrev=False, formatter_class=form)
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parses the arguments, whose option names may have `-` or `_`; ConfigError for an invalid one."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        words = [*map(_dashed, arguments[:end])]
        options, unknown = self.parse_known_args([*words, *arguments[end:]])
        if unknown:
            raise ConfigError(self._unknown(unknown[0], words))
        if vars(options).get("trust_code"):
            trust_code()
        if theme := vars(options).get("theme"):
            os.environ[THEME] = theme
        typed = {word.partition("=")[0] for word in words if word.startswith("-")}
        for mode in self._modes:
            sort, _, option = mode.name.partition(" ")
            active = (option in typed) == (sort == "with") if mode.active is None else mode.active(options)
            if active and (useless := sorted(typed.intersection(mode.unused))):
                raise ConfigError(f"{useless[0]}: does not work {mode.name}; leave it out")
        return options

    def _unknown(self, word: str, words: list[str]) -> str:
        """The error for a word that is no argument: a wrong name, or a part of a text that was not quoted."""
        names = self._option_string_actions
        if word.startswith("-") or word not in words:
            return f"{word}: no such option{did_you_mean(word, names) or '; --help lists all'}"
        if os.path.exists(word):  # noqa: PTH110 (Path.exists raises for a name that is too long)
            name = "--model" if os.path.isdir(word) else "--text"  # noqa: PTH112
            if name in names and name not in words:
                return f"{word}: not expected here; did you mean {name} {word}?"
        place = words.index(word)
        begin = next((i for i in reversed(range(place)) if words[i].startswith("-")), 0)
        end = next((i for i in range(place, len(words)) if words[i].startswith("-")), len(words))
        action = names.get(words[begin])
        if action is None or action.nargs == 0 or os.path.exists(words[begin + 1]):  # noqa: PTH110 (of any length)
            return f"{word}: not expected here; quote a text of several words, or see --help"
        if action.type in (int, float) or place == begin + 1:
            return f"{word}: not expected here; {words[begin]} takes one value"
        return f'{word}: not expected here; quote the text: {words[begin]} "{" ".join(words[begin + 1 : end])}"'

    def format_help(self) -> str:
        """The help, with a usage line of the arguments and the required options."""
        names = {action.dest: action.nargs for action in self._actions if not action.option_strings}
        words = [f"[{name}]" if nargs in ("?", "*") else name for name, nargs in names.items()]
        required = [action for action in self._actions if action.option_strings and action.required]
        words += [f"{action.option_strings[-1]} {action.dest.upper()}" for action in required]
        self.usage = " ".join(["%(prog)s", *words, "[options]"])
        return super().format_help()

    def error(self, message: str):
        """Raises instead of printing the usage."""
        message = message.removeprefix("argument ")
        for kind, rule in (("int", "a whole number, such as 8"), ("float", "a number, such as 0.8")):
            message = message.replace(f"invalid {kind} value: ", f"must be {rule}, got ")
        if "are required" in message:
            message += f"; {self.prog} --help explains them"
        if "expected one argument" in message:
            name = message.partition(":")[0]
            message = f"{name}: needs a value; one that begins with a dash is written {name}=VALUE"
        raise ConfigError(message)

    def add_model_option(self, kinds: str = "run folder, model folder or checkpoint") -> None:
        """Adds `--model`, to be passed to `announce_model`."""
        kinds = f"{kinds}, or storyteller, the built-in model"
        self.add_argument("--model", help=f"{kinds} (default: the newest run in runs/, else storyteller)")
        self.add_trust_option()

    def add_trust_option(self) -> None:
        """Adds `--trust-code`, which `parse` carries out."""
        trusted = "run the code that the model names, if it has parts of your own (default: refuse it)"
        self.add_argument("--trust-code", action="store_true", help=trusted)

    def add_overwrite_option(self) -> None:
        """Adds `--overwrite`, to be passed to `check_target`."""
        replaced = "replace an earlier output of this command at --out (default: refuse what exists)"
        self.add_argument("--overwrite", action="store_true", help=replaced)

    def add_theme_option(self) -> None:
        """Adds `--theme`, which `parse` carries out."""
        chosen = f"colours of the pictures, light or dark (default: {THEME} in the environment, else light)"
        self.add_argument("--theme", choices=THEMES, help=chosen)

    def add_device_option(self) -> None:
        """Adds `--device`, to be passed to `pick_device`."""
        self.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto for the fastest")


def _dashed(word: str) -> str:
    """An option's name with `-` for `_`; any other word unchanged."""
    return re.sub(r"\A--\w[\w-]*(?=\Z|=)", lambda found: found.group().replace("_", "-"), word)


def check_at_least(least: int, options: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError for an option below a minimum; options that were not given may be None."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def pick_device(name: str) -> str:
    """Checks a device name, and replaces `auto` by the fastest device: cuda, else mps, else cpu."""
    import torch  # imported here: help and errors must not wait for it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if reason := device_problem(name):
        raise ConfigError(f"--device {name}: cannot be used ({reason}); try --device cpu")
    return name


def device_problem(name: str) -> str | None:
    """The reason why PyTorch cannot use a device; None if it can."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def announce_model(given: str | None) -> tuple[str, Path]:
    """Finds the model given by `--model`, or by default the newest run's, and announces it before PyTorch is imported.

    Without a trained run, the default is the built-in storyteller. The result is the path of the run, or the one given,
    and the model folder or checkpoint there.
    """
    chosen = str(newest_run()) if given is None else given
    found = find_model(chosen)
    if found == STORYTELLER:
        own = f" (runs/ has no trained run); {command('fit', '-c', 'small')} trains your own" if given is None else ""
        notice(f"loading the built-in storyteller{own}")
        return str(found), found
    notice(f"loading {found}" + (", the newest run; --model takes another" if given is None else ""))
    return chosen, found


# --- errors and exit codes


def print_error(message: str, code: int) -> int:
    """Prints an error on one line of stderr and returns its exit code.

    A stop that was asked for is no error. It ends all processes of a run, and rank 0 alone prints it.
    """
    stopped = code in (Interrupted.exit_code, Preempted.exit_code)
    if stopped and process_rank() > 0:
        return code
    word = "" if stopped else "error: "
    with contextlib.suppress(OSError):  # a full disk behind stderr
        print(f"tinylm: {word}{' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    return code


def exit_code(
    run: Callable[[list[str]], int | None], arguments: list[str], report: Callable[[str, int], int] = print_error
) -> int:
    """Runs a command and turns its errors into one line on stderr and an exit code, which is returned.

    Args:
        run: the command; it may return an exit code itself
        arguments: its arguments; with `--debug` among them the traceback is printed too
        report: prints an error's message, given its exit code, and returns the exit code of the process
    """
    try:
        code = run(arguments) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return report("interrupted", Interrupted.exit_code)
    except BrokenPipeError:  # the reader of our output has closed the pipe
        _close_stdout()
        return 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, TinyLMError):
            return report(str(error), error.exit_code)
        if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
            message = f"{error.object!r} cannot name a file in this locale, whose encoding is {error.encoding}"
            return report(f"{message}; set PYTHONUTF8=1", ConfigError.exit_code)
        if problem := disk_problem(error):
            message = f"{_unwritten(error)} could not be written ({problem}); free some space and try again"
            return report(message, StorageError.exit_code)
        if isinstance(error, ModuleNotFoundError):
            missing = f"{sys.executable} has no {str(error.name).partition('.')[0]}"
            return report(f"{missing}; activate the environment in which tinylm is installed", TinyLMError.exit_code)
        return report(f"{type(error).__name__}: {error}; --debug shows where", TinyLMError.exit_code)


def _unwritten(error: Exception) -> str:
    """The name of what a full disk kept from being written.

    tinylm's own files have a StorageError with their path. Another error without a path is of a library's file, if it
    was raised there, or of standard output.
    """
    library = re.search(r"site-packages[\\/](\w+)", traceback.extract_tb(error.__traceback__)[-1].filename)
    if name := getattr(error, "filename", None) or (library and f"a file of {library[1]}"):
        return f"{name}:"
    size = os.fstat(sys.stdout.fileno()).st_size
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()
    return f"standard output, after {size:,} bytes,"


def _close_stdout() -> None:
    """Discards what waits to be written; otherwise Python would try again at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- the process

_interrupted = False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Delays Ctrl-C to a safe point: inside, the first one raises KeyboardInterrupt at the next `check_interrupt`.

    Python's own handler raises wherever the program is. In a finalizer, a weak reference's callback or a C library's
    callback the exception is printed and lost. A second Ctrl-C raises at once, and one that no check has seen raises at
    the end. Nothing changes where SIGINT has a handler already, nor outside the main thread, where Python allows none.
    """
    global _interrupted
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or earlier is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: object) -> None:
        global _interrupted
        _interrupted = True
        signal.signal(signal.SIGINT, earlier)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
        pending, _interrupted = _interrupted, False
    if pending:
        raise KeyboardInterrupt


def check_interrupt() -> None:
    """Raises KeyboardInterrupt after a Ctrl-C inside `interruptible`; decoding loops call it at each token."""
    if _interrupted and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def plural(count: int, thing: str) -> str:
    """A number of things: `1 token`, `2,048 tokens`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def scaled(number: float) -> str:
    """A number with three digits and the prefix of a unit: `1.23 M`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


def duration(seconds: float) -> str:
    """A time in hours and minutes, minutes and seconds, or seconds.

    >>> duration(48), duration(239.7), duration(7500)
    ('48 s', '4 min 00 s', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def process_rank() -> int:
    """The rank of this process, read from the launcher's environment; 0 for a single process."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # of torchrun, Lightning's own launcher, srun
        if os.environ.get(name):
            return int(os.environ[name])
    return 0


def prepare_process() -> None:
    """Writes UTF-8 on any console, and prints the Python line of a crash in native code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
        faulthandler.enable()


# --- tables and colours


def table(rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Aligned columns: the first `left` flush left, the others flush right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    cells = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def use_color(choice: str = "auto") -> bool:
    """Whether to colour stdout: `always`, `never`, or `auto` for a terminal whose user has not set NO_COLOR."""
    return choice == "always" or (choice == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def shaded(text: str, color: int) -> str:
    """Black text on one of the 256 terminal colours."""
    return f"\x1b[30;48;5;{color}m{text}\x1b[0m"


@dataclass(frozen=True)
class Scale:
    """Shows the value of a text as a background colour, or as a number in brackets where there is no colour."""

    quantity: str  # name and unit of the value
    form: str  # format of the value in brackets
    label: str  # format of the value in the legend
    steps: tuple[tuple[float, int], ...]  # for each colour, ascending: the least value, and its terminal number

    def show(self, text: str, value: float, color: bool) -> str:
        """The text with its value."""
        if not color:
            return f"{text}[{value:{self.form}}]"
        return shaded(text, [shade for least, shade in self.steps if least <= max(value, self.steps[0][0])][-1])

    def legend(self, color: bool) -> str:
        """One line that explains `show`."""
        if not color:
            return f"in brackets: the {self.quantity} of each token"
        return f"{self.quantity} from " + "".join(
            shaded(f" {least:{self.label}} ", shade) for least, shade in self.steps
        )
