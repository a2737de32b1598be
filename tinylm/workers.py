"""Other Python processes that help: one function, many values, results in order.

`multiprocessing` would start each of them with the caller's whole program (PyTorch and Lightning, some seconds, and
scripts without `if __name__ == "__main__"` would start themselves over and over). These import only what the function
needs, which takes a tenth of a second.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, TypeVar

from tinylm.errors import ConfigError, TinyLMError

Value = TypeVar("Value")
Result = TypeVar("Result")
WHILE_STARTING = 2  # values that are done here meanwhile
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
    """`map(function, values)`, with the help of other processes where there are many values.

    Args:
        function: of a module (or a method of an object) that other processes can import; has no side effects
        values: are taken one by one, two for each process ahead of the results at most
        processes: how many work; 1 is this one alone, None one for each core
        alone: values of which fewer are not worth the start of other processes

    Raises:
        ConfigError: if `processes` is less than 1.
        TinyLMError: if a process dies. What the function raises is raised here.
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
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map_with_helpers(function: Callable, values: Iterable, processes: int) -> Iterator:
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

    values, pending = iter(values), deque[Future]()
    with ThreadPoolExecutor(processes) as threads:  # they only wait: for a helper to read, and to answer
        try:
            yield from map(function, islice(values, WHILE_STARTING))  # until they are there
            for value in values:
                pending.append(threads.submit(call, value))
                if len(pending) > 2 * processes:  # so that nobody has to wait for us
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for helper in helpers:
                helper.stop()


class _Helper:
    """Another process, which applies a function to one value at a time."""

    def __init__(self, function: Callable) -> None:
        command = [sys.executable, "-c", _PROGRAM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux: 64 KB would mean many waits
            import fcntl

            for pipe in (self._requests, self._answers):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._function: Callable | None = function  # goes along with the first value: it may be too large not to wait
        owner = getattr(function, "__self__", function)
        self._send((sys.path, getattr(owner, "__module__", None) or type(owner).__module__))

    def call(self, value: Any) -> Any:
        """The function's result for a value."""
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
            pass  # it is dead, and `_receive` tells

    def _receive(self) -> Any:
        try:
            failed, result = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise TinyLMError(
                f"a helper process died (exit code {code}), maybe for lack of memory; try processes=1"
            ) from error
        if failed:
            raise result
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """What a helper does: reads a function, then values, and answers each with (failed, result)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever called
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not get among the answers
    try:
        function = pickle.load(source)
        while True:
            value = pickle.load(source)
            try:
                answer = False, function(value)
            except Exception as error:
                answer = True, error
            pickle.dump(answer, target, pickle.HIGHEST_PROTOCOL)
            target.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # whoever called has gone
