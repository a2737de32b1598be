"""Jobs of a real SLURM, of Ray, and of two hosts: whatever happens to them, they end as one that was never stopped.

Each test is skipped where its tool is missing. Ranks that one machine can start by itself: test_distributed.py.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.states import compared, snapshot

PAUSE = "tests.training.ranks.Pause"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc"),
]


def options(config: Path, name: str = "mine", steps: int = 200) -> list[str]:
    """A run that takes long enough to be stopped, whatever starts it."""
    words = ["-c", str(config), "--trainer.callbacks+", PAUSE, "--trust", PAUSE.rpartition(".")[0], "--run.name", name]
    words += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps // 2)]
    return [*words, "--trainer.log_every_n_steps", "10", "--run.timeout", "20"]


def start_whole(folder: Path, nodes: int, tasks: int, *words: str) -> list[Any]:
    """Starts a run that nothing stops, with the options that the launchers give it."""
    folder.mkdir(exist_ok=True)
    arguments = ["fit", "--trainer.strategy", "ddp", *words]
    arguments += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(tasks)]
    begin, log = processes.start, folder.with_suffix(".txt")
    return [begin(processes.command_line, arguments, folder, log, **place) for place in processes.places(nodes, tasks)]


def assert_same(ours: Path, whole: Path, ranks: list[Any]) -> None:
    """Every file of the runs in two folders is the same, to the last bit."""
    for rank in ranks:
        rank.join(240)
    assert [rank.exitcode for rank in ranks] == [0] * len(ranks), whole.with_suffix(".txt").read_text()
    assert list(compared(snapshot(ours), snapshot(whole))) == []


def train_on(folder: Path, name: str = "mine") -> None:
    """Waits until a run has saved its next checkpoint."""
    last = folder / "runs" / name / "checkpoints/last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    assert processes.wait_for(lambda: last.exists() and last.stat().st_mtime_ns > before)


# --- SLURM; two nodes on one machine are enough

SHAPES = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1)}  # nodes x tasks per node


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Job:
    """A job of scripts/slurm.sh."""

    def __init__(self, folder: Path, shape: str, *words: str, more: tuple[str, ...] = ()) -> None:
        self.folder, self.environment = folder, processes.environment(PYTHON=sys.executable, OMP_NUM_THREADS="1")
        nodes, tasks = SHAPES[shape]
        command = ["sbatch", "--parsable", f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--cpus-per-task=1"]
        command += ["--gpus-per-node=0", "--mem=2000", "--time=20", *more, str(processes.ROOT / "scripts/slurm.sh")]
        sent = subprocess.run([*command, *words], cwd=folder, env=self.environment, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        self.number = sent.stdout.strip()

    def get(self, *fields: str) -> str:
        """Values of fields at one moment."""
        found = dict(re.findall(r"\b(\w+)=(\S+)", ask("scontrol", "show", "job", self.number)))
        return " ".join(found.get(field, "") for field in fields)

    @property
    def output(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"slurm-*-{self.get('JobId')}.out"))

    def reaches(self, state: str, restarts: int) -> None:
        """Waits for a state; a requeued job would wait two minutes longer by itself."""

        def there() -> bool:
            now = self.get("JobState", "Restarts")
            if restarts and now == f"PENDING {restarts}":
                subprocess.run(["scontrol", "update", f"JobId={self.number}", "StartTime=now"], capture_output=True)
            return now == f"{state} {restarts}"

        assert processes.wait_for(there), f"{self.get('JobState', 'Restarts', 'Reason')} {self.output}"


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """Cores of each node of SLURM; what a failed test has left in the queue is cancelled."""
    if shutil.which("sbatch") is None:
        pytest.skip("no SLURM here: sbatch is missing")
    nodes = subprocess.run(["sinfo", "-hN", "-t", "idle,mix,alloc", "-o", "%c"], capture_output=True, text=True)
    if len(nodes.stdout.split()) < 2:
        pytest.skip(f"no SLURM here: two nodes must be up {nodes.stderr}".strip())
    yield [int(each) for each in nodes.stdout.split()]
    subprocess.run(["scancel", "--name=tinylm"])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_job_of_slurm_goes_on_after_whatever_happens_to_it(cores, tiny_yaml, tmp_path, shape):
    if SHAPES[shape][1] > max(cores):
        pytest.skip("no node with two cores is up")
    whole, folder, words = tmp_path / "whole", tmp_path / "job", options(tiny_yaml)
    folder.mkdir()
    ranks = start_whole(whole, *SHAPES[shape], *words)

    job = Job(folder, shape, *words)
    job.reaches("RUNNING", 0)
    assert processes.wait_for(lambda: processes.rank_processes(folder))
    ask("scancel", "--signal=USR1", "--batch", job.number)  # as at the time limit: early, before the first step
    job.reaches("RUNNING", 1)
    train_on(folder)
    ask("scontrol", "requeue", job.number)
    job.reaches("RUNNING", 2)
    train_on(folder)
    ask("scancel", "--signal=USR1", "--batch", job.number)  # late
    job.reaches("RUNNING", 3)
    train_on(folder)
    restarts = 3 + (shape == "2x1")
    if shape == "2x1":
        *_, node = ask("scontrol", "show", "hostnames", job.get("NodeList")).split()
        ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        try:
            assert processes.wait_for(lambda: not processes.rank_processes(folder))
        finally:
            subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"])  # unless it has come back itself
        job.reaches("RUNNING", restarts)
        train_on(folder)
    os.kill(max(processes.rank_processes(folder).items())[1], signal.SIGKILL)
    job.reaches("FAILED", restarts)
    assert job.get("ExitCode") == "137:0"
    assert shape == "1x1" or re.search(r"tinylm: error: rank 1 \(\S+, process \d+\) died; fit --resume", job.output)

    job = Job(folder, shape, *words)
    job.reaches("RUNNING", 0)
    train_on(folder)
    ask("scancel", job.number)
    job.reaches("CANCELLED", 0)
    assert processes.wait_for(lambda: not processes.rank_processes(folder))
    assert "tinylm: error: stopped after step" in job.output

    job = Job(folder, shape, *words)
    job.reaches("COMPLETED", 0)
    assert_same(folder, whole, ranks)


def test_an_array_of_slurm_trains_a_seed_per_task_and_requeues_only_the_one_told(cores, tiny_yaml, tmp_path):
    whole, folder, seeds = tmp_path / "whole", tmp_path / "job", (1, 2, 3)
    folder.mkdir()
    array = Job(folder, "1x1", *options(tiny_yaml, "seeds"), more=("--array=1-3",)).number
    tasks = {seed: Job.__new__(Job) for seed in seeds}
    for seed, task in tasks.items():
        task.folder, task.number = folder, f"{array}_{seed}"
    for task in tasks.values():
        task.reaches("RUNNING", 0)
    told = next(seed for seed, task in tasks.items() if task.get("JobId") == array)  # has the number of the array
    train_on(folder, f"seeds-{told}")
    ask("scancel", "--signal=USR1", "--batch", tasks[told].number)
    for seed, task in tasks.items():
        task.reaches("COMPLETED", int(seed == told))
    ranks = []
    for seed in seeds:
        words = [*options(tiny_yaml, "seeds"), "--run.name", f"seeds-{seed}", "--seed_everything", str(seed)]
        ranks += start_whole(whole, 1, 1, *words)
    assert_same(folder, whole, ranks)
    weights = [(folder / f"runs/seeds-{seed}/model/model.safetensors").read_bytes() for seed in seeds]
    assert len(set(weights)) == 3


def test_slurm_announces_the_time_limit_and_the_job_is_requeued(cores, tiny_yaml, tmp_path):
    """The limit itself, of two minutes: the announcement, 90 s before it, may come 30 s earlier."""
    job = Job(tmp_path, "2x1", *options(tiny_yaml, steps=3000), more=("--time=2",))
    assert processes.wait_for(lambda: job.get("Restarts") == "1")
    assert "TIME LIMIT" not in job.output
    ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=20")
    job.reaches("RUNNING", 1)
    train_on(tmp_path)


# --- Ray


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_starts_killed_workers_again(tiny_yaml, tmp_path):
    """First a rank is killed, then a worker of Ray's, with which its rank dies."""
    whole, folder, words = tmp_path / "whole", tmp_path / "job", options(tiny_yaml)
    folder.mkdir()
    command = [sys.executable, str(processes.ROOT / "scripts/examples/ray_train.py"), "--workers", "2", *words]
    ray = dict(RAY_TMPDIR="/tmp", RAY_USAGE_STATS_ENABLED="0")  # a socket's path has at most 107 bytes
    ray["RAY_memory_monitor_refresh_ms"] = "0"  # or Ray ends its workers when other programs fill the memory
    with (log := tmp_path / "log.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=processes.environment(**ray), stdout=out, stderr=out)
    try:
        train_on(folder)
        first = processes.rank_processes(folder)
        os.kill(first[1], signal.SIGKILL)
        assert processes.wait_for(lambda: set(processes.rank_processes(folder).values()).isdisjoint(first.values()))
        train_on(folder)
        second = processes.rank_processes(folder)
        parent = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{second[0]}/status").read_text())[1])  # type: ignore
        os.kill(parent, signal.SIGKILL)
        ranks = start_whole(whole, 1, 2, *words, "--run.dir", str(whole / "runs"))
        assert process.wait(240) == 0, log.read_text()
    finally:
        process.terminate()
    assert log.read_text().count("resuming") == 2
    shutil.rmtree(folder / "runs/.ray")  # files of Ray itself
    assert_same(folder, whole, ranks)


# --- two hosts


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable; each plays a host."""
    names = [f"tinylm-{uuid.uuid4().hex[:8]}-{end}" for end in "ab"]
    if os.geteuid() != 0 or not shutil.which("ip") or subprocess.run(["ip", "netns", "add", names[0]]).returncode:
        pytest.skip("needs root and ip netns")
    try:
        ask("ip", "netns", "add", names[1])
        ask(*f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}".split())
        for number, name in enumerate(names, start=1):
            ask(*f"ip -n {name} address add 10.77.0.{number}/24 dev cable".split())
            ask(*f"ip -n {name} link set lo up".split())
            ask(*f"ip -n {name} link set cable up".split())
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name])


def on_hosts(hosts: list[str], folder: Path, *words: str) -> list[subprocess.Popen]:
    """torchrun on each host; each sees its own processes only, and has a name of its own."""
    started = []
    for number, host in enumerate(hosts):
        command = ["ip", "netns", "exec", host, "unshare", "--pid", "--fork", "--kill-child", "--uts", "--mount-proc"]
        command += ["sh", "-c", f'hostname host-{"ab"[number]}; exec "$@"', "sh", sys.executable]
        command += ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
        command += ["--master-addr", "10.77.0.1", "--master-port", "29500", "-m", "tinylm", "fit"]
        command += ["--trainer.strategy", "ddp", *words, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
        environment = processes.environment(GLOO_SOCKET_IFNAME="cable")
        started.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    return started


def test_two_hosts_whose_cable_is_cut_end_in_time_and_go_on_when_it_is_back(hosts, tiny_yaml, tmp_path):
    whole, folder, words = tmp_path / "whole", tmp_path / "job", options(tiny_yaml)
    folder.mkdir()
    ranks = start_whole(whole, 2, 1, *words)
    started = on_hosts(hosts, folder, *words)
    try:
        train_on(folder)
        ask(*f"ip -n {hosts[1]} link set cable down".split())
        said = [process.communicate(timeout=20 + 10)[1] for process in started]  # run.timeout, and torchrun's end
        for other, text in zip(("rank 1 (host-b", "rank 0 (host-a"), said, strict=True):
            [line] = re.findall("tinylm: error: (.*)", text)
            assert line.startswith(other) and "stalled: no sign of life for 17 s" in line
        assert all(process.returncode for process in started) and not processes.rank_processes(folder)

        ask(*f"ip -n {hosts[1]} link set cable up".split())
        started = on_hosts(hosts, folder, *words, "--resume")
        said = [process.communicate(timeout=240)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
    finally:
        for process in started:
            process.kill()
    assert "tinylm: resuming runs/mine from step" in said[0]
    assert_same(folder, whole, ranks)
