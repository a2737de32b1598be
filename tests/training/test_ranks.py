"""A rank that is missing, dead or stalled is named, and ends the others in time: real processes, killed and stopped."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import processes

TIMEOUT = 4.0
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")


def member(rank: int, size: int, port: int, folder: Path, then: str = "") -> None:
    """A rank that connects to the others, then does as told, and waits as in a collective operation."""
    from tinylm.errors import DataError
    from tinylm.signals import raised
    from tinylm.training.ranks import RankWatch

    processes._redirect(folder / f"{rank}.txt", folder)
    environment = SimpleNamespace(main_address="127.0.0.1", main_port=port)
    strategy = SimpleNamespace(global_rank=rank, local_rank=rank, world_size=size, launcher=None)
    strategy.cluster_environment = environment
    callback = RankWatch()
    try:
        with raised():
            (folder / f"{rank}.begun").touch()
            callback.begin(strategy, TIMEOUT)
    except Exception as error:
        print(f"tinylm: error: {error}", file=sys.stderr, flush=True)
        os._exit(70)
    (folder / f"{rank}.ready").touch()
    assert callback.watch is not None
    callback._pass()
    if then == "fail":
        callback.on_exception(None, None, DataError("a.txt: is empty"))
        os._exit(65)
    if then == "stop":
        from tinylm.errors import Preempted

        callback.on_exception(None, None, Preempted("stopped"))
        os._exit(75)
    if then == "end":
        callback.teardown(None, None, "fit")
        os._exit(0)
    if then != "hang":
        callback._pass()
    time.sleep(60)


@pytest.fixture
def job(tmp_path):
    """job(rank 0's task, rank 1's task, ...) starts ranks; None leaves one out."""
    started: dict = {}

    def start(*then: str | None) -> dict:
        port = processes.free_port()
        for rank, task in enumerate(then):
            if task is not None:
                started[rank] = processes.start(member, rank, len(then), port, tmp_path, task)
        return started

    yield start
    for process in started.values():
        process.kill()


def ready(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.ready"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)


def errors(folder: Path) -> list[str]:
    text = "".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    return re.findall("tinylm: error: (.*)", text)


def codes(started: dict) -> list[int | None]:
    for process in started.values():
        process.join(3 * TIMEOUT)
    return [process.exitcode for process in started.values()]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_killed_rank_is_named_once_and_ends_the_others_at_once(job, tmp_path, lost):
    started = job("", "", "")
    ready(tmp_path, 3)
    started[lost].kill()
    assert codes(started) == [-9 if rank == lost else 70 for rank in range(3)]
    [line] = errors(tmp_path)
    assert f"rank {lost} ({socket.gethostname()}, process {started[lost].pid}) died" in line


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named_and_killed_within_the_timeout(job, tmp_path, lost):
    started = job("", "", "")
    ready(tmp_path, 3)
    os.kill(started[lost].pid, signal.SIGSTOP)
    assert codes(started) == [-9 if rank == lost else 70 for rank in range(3)]
    [line] = errors(tmp_path)
    assert f"rank {lost} ({socket.gethostname()}, process {started[lost].pid}) stalled: no sign of life" in line


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_whose_training_stands_still_is_named(job, tmp_path, lost):
    """Its watch lives on, as when a disk does not answer."""
    started = job(*("hang" if rank == lost else "" for rank in range(3)))
    assert all(code in (70, -9) for code in codes(started))
    [line] = errors(tmp_path)
    assert line.startswith(f"rank {lost} (") and "stalled: the other ranks have waited for it" in line


@pytest.mark.parametrize(
    ("lost", "said"),
    [pytest.param(0, "rank 0 of 3 did not start within 4 s", marks=pytest.mark.slow), (1, "rank 1 of 3 did not")],
)
def test_a_rank_that_never_starts_is_named_within_the_timeout(job, tmp_path, lost, said):
    started = job(*(None if rank == lost else "" for rank in range(3)))
    assert codes(started) == [70, 70]
    assert errors(tmp_path) and all(said in line for line in errors(tmp_path))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_heeds_a_signal_at_once(job, tmp_path, rank):
    """Not after the timeout, which would say that the other rank did not start. Torchrun would kill it 30 s later."""
    started = job(*("" if each == rank else None for each in range(2)))
    assert processes.wait_for((tmp_path / f"{rank}.begun").exists)
    time.sleep(0.5)
    os.kill(started[rank].pid, signal.SIGTERM)
    assert codes(started) == [70]
    assert errors(tmp_path) == ["stopped by SIGTERM"]


def test_an_error_of_one_rank_ends_all_with_its_exit_code(job, tmp_path):
    started = job("", "fail", "")
    assert codes(started) == [65, 65, 65]
    assert errors(tmp_path) == []  # the rank itself reports it


def test_ranks_that_stop_or_end_are_not_lost(job, tmp_path):
    assert codes(job("stop", "stop", "stop")) == [75, 75, 75]
    assert codes(job("end", "end", "end")) == [0, 0, 0]
    assert errors(tmp_path) == []


def test_strangers_at_the_port_are_ignored(job, tmp_path):
    started = job("", "")
    ready(tmp_path, 2)
    ports = listening_ports(started[0].pid)
    for port in ports:
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\n"):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as link:
                link.sendall(junk)
    time.sleep(1)
    assert all(process.is_alive() for process in started.values())


def listening_ports(pid: int) -> list[int]:
    """Ports on which a process listens."""
    inodes = {
        str(link.readlink()).strip("socket:[]") for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
    }
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return [int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


# --- training, as people start it


@contextlib.contextmanager
def training(launcher: str, tiny_yaml: Path, folder: Path, timeout: int) -> Iterator[subprocess.Popen]:
    """Two ranks that train for long, started by Lightning or torchrun; what they say is in `said.txt`."""
    words = ["-m", "tinylm", "fit", "-c", str(tiny_yaml), "-c", "ddp", "--trainer.devices", "2"]
    words += ["--run.timeout", str(timeout), "--trainer.max_steps", "1000000", "--trainer.val_check_interval", "500000"]
    if launcher == "torchrun":
        port = str(processes.free_port())
        words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, *words]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=processes.environment(), stderr=said)
    try:
        yield process
    finally:
        process.kill()
        for pid in processes.rank_processes(folder).values():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    ("launcher", "number", "lost"),
    [
        ("lightning", signal.SIGKILL, 0),  # the launcher itself
        ("lightning", signal.SIGKILL, 1),
        ("lightning", signal.SIGSTOP, 0),
        ("lightning", signal.SIGSTOP, 1),
        ("torchrun", signal.SIGKILL, 0),  # its ranks are alike to it
        ("torchrun", signal.SIGSTOP, 1),
    ],
)
def test_a_lost_rank_ends_training_and_is_named(tiny_yaml, tmp_path, launcher, number, lost):
    with training(launcher, tiny_yaml, tmp_path, timeout=18) as process:
        saved = (tmp_path / "runs/mini/checkpoints/last.ckpt").exists
        assert processes.wait_for(lambda: saved() or process.poll()) is True
        ranks = processes.rank_processes(tmp_path)
        os.kill(ranks[lost], number)
        assert process.wait(timeout=100) != 0
    [line] = errors(tmp_path)  # died: noticed at once, by its closed connection; stalled: after the timeout
    how = "stalled" if number == signal.SIGSTOP else "died"
    assert f"rank {lost} ({socket.gethostname()}, process {ranks[lost]}) {how}" in line


@pytest.mark.slow
@linux
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_a_rank_that_stops_during_its_start_is_named_within_the_timeout(tiny_yaml, tmp_path, launcher):
    """Torchrun, whose processes all start at once, would take 30 s to kill it: it is continued."""
    with training(launcher, tiny_yaml, tmp_path, timeout=8) as process:
        stopped = processes.wait_for(lambda: processes.rank_processes(tmp_path).get(1))
        os.kill(stopped, signal.SIGSTOP)
        [line] = processes.wait_for(lambda: errors(tmp_path))
        assert "rank 1 of 2 did not start within 8 s; run.timeout sets the limit" in line
        if launcher == "torchrun":
            os.kill(stopped, signal.SIGCONT)
        assert process.wait(timeout=60) != 0
        assert processes.rank_processes(tmp_path) == {}
