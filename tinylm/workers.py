"""Helper processes: a parallel, ordered `map`.

The pool is hand-written because its helpers import only the tokenizer and start in a tenth of a second. A pool of
`multiprocessing` would import the caller's main module again, and with it PyTorch; a pool of loky takes three times as
long to start, and 1.7 times as long to encode 120 MB (docs/architecture.md).
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from tinylm.errors import ConfigError, TinyLMError

if TYPE_CHECKING:
    from concurrent.futures import Future

Value = TypeVar("Value")
Result = TypeVar("Result")
WHILE_STARTING = 2  # values processed in this process while the helpers start
_PROGRAM = """
import faulthandler, importlib, pickle, sys
faulthandler.enable()
sys.path[:], module = pickle.load(sys.stdin.buffer)
importlib.import_module(module)
from tinylm.workers import serve
serve()
"""


def map_in_order(
    function: Callable[[Value], Result], values: Iterable[Value], processes: int | None = 1, alone: int = 1
) -> Iterator[Result]:
    """Parallel `map(function, values)`: yields the results in order, computed by helper processes.

    Exceptions raised by the function are raised again here.

    Args:
        function: a picklable function or method without side effects, in a module that helpers can import
        values: consumed lazily, at most about two values per process ahead of the results
        processes: number of helper processes; 1: none, this process does the work; None: one per core
        alone: number of values processed here first; helpers are started only if more follow

    Raises:
        ConfigError: if `processes` is less than 1.
        TinyLMError: if a helper process dies.
    """
    processes = num_cores() if processes is None else processes
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, got {processes}")
    values = iter(values)
    if processes == 1:
        yield from map(function, values)
        return
    yield from map(function, islice(values, alone))
    for following in values:
        yield from _map_with_helpers(function, chain([following], values), processes)


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map_with_helpers(function: Callable, values: Iterable, processes: int) -> Iterator:
    from concurrent.futures import ThreadPoolExecutor  # not above: it imports logging, and few programs need helpers

    helpers = [_Helper(function) for _ in range(processes)]
    idle: SimpleQueue[_Helper] = SimpleQueue()
    for helper in helpers:
        idle.put(helper)

    def call(value: Any) -> Any:
        helper = idle.get()
        try:
            return helper.call(value)
        finally:
            idle.put(helper)

    values, pending = iter(values), deque["Future"]()
    with ThreadPoolExecutor(processes) as threads:  # the threads only wait for their helpers
        try:
            yield from map(function, islice(values, WHILE_STARTING))  # while the helpers start
            for value in values:
                pending.append(threads.submit(call, value))
                if len(pending) > 2 * processes:  # keeps every helper busy
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for helper in helpers:
                helper.stop()


class _Helper:
    """A process that applies a function to one value at a time."""

    def __init__(self, function: Callable) -> None:
        command = [sys.executable, "-c", _PROGRAM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._requests, self._results = self._process.stdin, self._process.stdout
        with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux: pipes larger than 64 KB block less
            import fcntl

            for pipe in (self._requests, self._results):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._function: Callable | None = function  # sent with the first value, since sending it may block
        owner = getattr(function, "__self__", function)
        self._send((sys.path, getattr(owner, "__module__", None) or type(owner).__module__))

    def call(self, value: Any) -> Any:
        """Returns the function's result for a value."""
        if self._function is not None:
            self._send(self._function)
            self._function = None
        self._send(value)
        return self._receive()

    def _send(self, value: Any) -> None:
        try:
            pickle.dump(value, self._requests, pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
        except BrokenPipeError:
            pass  # the helper died; `_receive` raises the error

    def _receive(self) -> Any:
        try:
            failed, result = pickle.load(self._results)
        except (EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise TinyLMError(
                f"a helper process died (exit code {code}), possibly out of memory; try processes=1"
            ) from error
        if failed:
            raise result
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Runs a helper: reads a function, then values, and writes (failed, result) for each value."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the function's output goes to stderr, not into the stream of results
    try:
        function = pickle.load(source)
        while True:
            value = pickle.load(source)
            try:
                result = False, function(value)
            except Exception as error:
                result = True, error
            pickle.dump(result, target, pickle.HIGHEST_PROTOCOL)
            target.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the caller is gone
