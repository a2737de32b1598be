"""The end of a command: errors as one line with an exit code, Ctrl-C at a safe point; and the process it runs in."""

import contextlib
import faulthandler
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from tinylm.errors import ConfigError, Interrupted, Preempted, StorageError, TinyLMError, disk_problem


def print_error(message: str, code: int) -> int:
    """Prints an error on one line of stderr and returns its exit code.

    A requested stop is not an error. It ends all processes of a run, and rank 0 alone prints it.
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
    """The name of the file or stream that a full disk kept from being written.

    tinylm's own files have a StorageError with their path. Any other error without a path belongs to a library's file,
    if it was raised there, or to standard output.
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
    """Discards pending output; otherwise Python would try to write it again at exit, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- Ctrl-C

_interrupted = False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Delays Ctrl-C to a safe point: inside, the first one raises KeyboardInterrupt at the next `check_interrupt`.

    Python's own handler raises wherever the program is. In a finalizer, a weak reference's callback or a C library's
    callback, the exception is printed and lost. A second Ctrl-C raises at once, and one that no check has seen raises
    at the end. Nothing changes if SIGINT already has a handler, or outside the main thread, where Python allows none.
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


# --- the process


def seconds_since_start() -> float:
    """Seconds since this process began its command."""
    return time.perf_counter() - _started


def process_rank() -> int:
    """The rank of this process, read from the launcher's environment; 0 for a single process."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # of torchrun, Lightning's own launcher, srun
        if os.environ.get(name):
            return int(os.environ[name])
    return 0


_started = time.perf_counter()


def prepare_process() -> None:
    """Starts the clock of the command, writes UTF-8 on any console, and shows where native code crashes."""
    global _started
    _started = time.perf_counter()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
        faulthandler.enable()
