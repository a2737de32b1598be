"""Starts processes quickly, by forking a server that has already imported torch and Lightning."""

import json
import multiprocessing
import os
import runpy
import socket
import sys
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


def run_ranks(world_size: int, function: Any, *arguments: Any, out: Path) -> list[Any]:
    """Calls `function(*arguments, path)` in `world_size` processes; each writes its result to its `path`, as JSON.

    Lightning reads the ranks from environment variables, as under a launcher.
    """
    port = str(free_port())
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), "NODE_RANK": "0"}
    paths = [out / f"rank-{rank}.json" for rank in range(world_size)]
    for path in paths:
        path.unlink(missing_ok=True)
    environments = [shared | {"LOCAL_RANK": str(rank)} if world_size > 1 else {} for rank in range(world_size)]
    processes = [start(function, *arguments, path, **environments[rank]) for rank, path in enumerate(paths)]
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [json.loads(path.read_text()) for path in paths]
