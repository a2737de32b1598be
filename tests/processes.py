"""Starts processes quickly, by forking a server that has already imported what every run imports."""

import contextlib
import gc
import json
import multiprocessing
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORKS = os.name == "posix"  # Windows has no such server; every process starts from scratch
_context = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    preloaded = ["tinylm.training.cli", "tinylm.commands.train", "matplotlib.backends.backend_pdf", "s3fs"]
    _context.set_forkserver_preload(["tests.shortcuts", *preloaded])  # what every run imports


def start(function: Any, *arguments: Any, **environment: str) -> BaseProcess:
    """Starts a process that calls a module-level function, with additional environment variables."""
    process = _context.Process(target=_call, args=(function, arguments, environment))
    process.start()
    return process


def _call(function: Any, arguments: tuple, environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("TINYLM_RUN", "PL_", "SLURM", "TORCHELASTIC"))]:
        del os.environ[name]
    os.environ.update(environment)
    if FORKS:
        multiprocessing.set_start_method("fork", force=True)  # as in a process not forked from a server
        gc.freeze()  # what was imported is not searched for garbage
    function(*arguments)


def command_line(arguments: list[str], folder: Path, output: Path) -> None:
    """Runs `tinylm ARGUMENTS` in a folder, with its output in a file."""
    from tinylm.commands import main

    _redirect(output, folder)
    sys.argv = [str(ROOT / "scripts" / "train.py"), *arguments]  # Lightning can start it again for other ranks
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips the cleanup of state inherited from the parent


def script(path: Path, arguments: list[str], folder: Path, output: Path) -> None:
    """Runs `python SCRIPT ARGUMENTS` in a folder, with its output in a file."""
    _redirect(output, folder)
    sys.argv = [str(path), *arguments]
    sys.path[0] = str(path.parent)
    code = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(output: Path, folder: Path) -> None:
    os.chdir(folder)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)


class Forked:
    """A process of the server that calls a function, with the methods of `subprocess.Popen` that tests use.

    Args:
        function: a function of a module
        arguments: its arguments
        folder: the process's current folder
        environment: additional environment variables
    """

    def __init__(self, function: Any, *arguments: Any, folder: Path, **environment: str) -> None:
        self._outputs = Path(tempfile.mkdtemp())
        self._process = start(_captured, self._outputs, folder, function, arguments, **environment)
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while the process runs."""
        return self._process.exitcode

    poll = returncode.fget

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float = 240) -> int:
        """Waits for the end; returns the exit code. A failed test shows what a failed process has written."""
        self._process.join(timeout)
        code = self.returncode
        if code != 0:
            for path in sorted(self._outputs.glob("*")):
                print(f"--- {self._process}, {path.name}:\n{path.read_text(encoding='utf-8', errors='replace')}")
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return code

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Waits for the end; returns what was written to stdout and to stderr."""
        self.wait(timeout)
        out, err = ((self._outputs / name).read_text(encoding="utf-8") for name in ("out", "err"))
        shutil.rmtree(self._outputs)
        return out, err


def _captured(outputs: Path, folder: Path, function: Any, arguments: tuple) -> None:
    if FORKS:
        os.setsid()  # a group of its own, which can be killed with it
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        with (outputs / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    code = 0
    try:
        code = function(*arguments) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips the cleanup of state inherited from the parent


def _call_main(words: list[str]) -> int:
    from tinylm.commands import main

    sys.argv = [str(ROOT / "scripts" / "train.py"), *words]  # Lightning can start it again for other ranks
    return main()


def _call_code(code: str, words: list[str]) -> None:
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def tinylm(folder: Path, *words: object, **variables: str) -> Forked:
    """Starts `tinylm WORDS` in a folder, with this process's environment and more variables."""
    return Forked(_call_main, [*map(str, words)], folder=folder, **environment(**variables))


def python(code: str, *words: object) -> Forked:
    """Starts `python -c CODE WORDS` with PyTorch, Lightning and tinylm already imported."""
    return Forked(_call_code, code, [*map(str, words)], folder=Path.cwd(), **environment())


def torchrun(folder: Path, *words: object, nodes: int = 1, tasks: int = 1) -> list[Forked]:
    """Starts `tinylm WORDS` on so many ranks, as torchrun does."""
    return [tinylm(folder, *words, **place) for place in places(nodes, tasks)]


def free_port() -> int:
    """A local port that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """The value of a condition as soon as it is true, or after this long: a busy machine takes a minute."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def environment(**values: str) -> dict[str, str]:
    """Environment of a new process that finds tinylm and the tests, but nothing of a run of this one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("TINYLM_RUN", "PL_"))}
    return ours | {"PYTHONPATH": str(ROOT), **values}


def rank_processes(folder: Path) -> dict[int, int]:
    """Process ids of the ranks of `tinylm fit` that train in a folder, whoever has started them."""
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            launcher = words[0].endswith(b"srun") or b"torch.distributed.run" in words
            if process.name.isdigit() and b"fit" in words and not launcher and (process / "cwd").readlink() == folder:
                values = dict(re.findall(rb"(\w+)=([^\0]*)", (process / "environ").read_bytes()))
                names = (name for name in (b"SLURM_PROCID", b"RANK", b"LOCAL_RANK") if name in values)
                found[int(values.get(next(names, b""), 0))] = int(process.name)
    return found


def places(nodes: int, tasks: int) -> list[dict[str, str]]:
    """Environment variables of the ranks of a job with so many tasks per node, as torchrun sets them."""
    if nodes * tasks == 1:
        return [{}]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"WORLD_SIZE": str(nodes * tasks), "LOCAL_WORLD_SIZE": str(tasks)}
    names = ("RANK", "GROUP_RANK", "LOCAL_RANK")
    numbers = [(rank, rank // tasks, rank % tasks) for rank in range(nodes * tasks)]
    return [shared | {name: str(number) for name, number in zip(names, each, strict=True)} for each in numbers]


def run_ranks(world_size: int, function: Any, *arguments: Any, out: Path) -> list[Any]:
    """Calls `function(*arguments, path)` in `world_size` processes; each writes its result to its `path`, as JSON."""
    paths = [out / f"rank-{rank}.json" for rank in range(world_size)]
    for path in paths:
        path.unlink(missing_ok=True)
    both = zip(paths, places(1, world_size), strict=True)
    processes = [start(function, *arguments, path, **place) for path, place in both]
    for process in processes:
        process.join(400)  # four on a busy machine
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [json.loads(path.read_text()) for path in paths]


@contextlib.contextmanager
def left_group() -> Iterator[None]:
    """Ends the process group of a run, which otherwise lasts as long as this process, and removes its variables."""
    from torch import distributed

    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
