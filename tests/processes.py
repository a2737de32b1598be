"""Starts processes quickly, by forking a server that has already imported torch and Lightning."""

import contextlib
import json
import multiprocessing
import os
import re
import runpy
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORKS = os.name == "posix"  # Windows has no such server; every process starts from scratch
_context = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    _context.set_forkserver_preload(["tinylm.training.cli"])


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
