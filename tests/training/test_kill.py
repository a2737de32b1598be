"""Killed at any moment and resumed, a run ends as if nothing had happened: to the last bit, in real processes."""

import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests import processes
from tinylm.runs.metrics import read_metrics

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
MOMENTS = 20


def train(folder: Path, *arguments: str):
    """A process that trains, and when it began."""
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1"}
    return processes.start(processes.command_line, list(arguments), folder, folder / "said.txt", **environment)


def say(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def until(condition, process, seconds: float = 60) -> None:
    """Waits, as long as the process lives."""
    deadline = time.monotonic() + seconds
    while not condition() and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_twenty_moments_and_resumed_the_run_is_the_same_to_the_last_bit(tiny_yaml, tmp_path, workers):
    """60 steps with dropout, accumulation and validation inside; killed in steps, validations and saves."""
    arguments = ["fit", "-c", str(tiny_yaml), "--trainer.max_steps", "60", "--data.num_workers", str(workers)]
    arguments += ["--run.sample_tokens", "0"]
    whole = train(tmp_path / "whole", *arguments)
    until((tmp_path / "whole/runs/mini/metrics.csv").exists, whole)
    started = time.monotonic()
    whole.join(120)
    duration = time.monotonic() - started
    assert whole.exitcode == 0, say(tmp_path / "whole")
    shares = [random.Random(workers).random() for _ in range(MOMENTS)]
    delays = sorted((0.95 * number + share) / MOMENTS * duration for number, share in enumerate(shares))

    def kill_and_resume(number: int) -> int:
        """The step that it was resumed from; -1 where it had ended before the kill."""
        folder = tmp_path / f"killed-{number}"
        process = train(folder, *arguments)
        until((folder / "runs/mini/metrics.csv").exists, process)
        time.sleep(delays[number])
        process.kill()
        process.join()
        if process.exitcode == 0:
            return -1
        if not any((folder / "runs/mini/checkpoints").glob("*.ckpt")):  # killed before the first one: afresh
            shutil.rmtree(folder / "runs")
            again = train(folder, *arguments)
            again.join(120)
            assert again.exitcode == 0, say(folder)
            return 0
        resumed = train(folder, *arguments, "--resume")
        resumed.join(120)
        assert resumed.exitcode == 0, say(folder)
        return int(say(folder).split("from step ")[1].split(" ")[0])

    with ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(kill_and_resume, range(MOMENTS)))
    assert len({step for step in steps if step > 0}) >= 5, steps  # the moments were spread over the run
    assert sum(step >= 0 for step in steps) >= 15, steps
    for number in range(MOMENTS):
        assert_same(tmp_path / f"killed-{number}/runs/mini", tmp_path / "whole/runs/mini")


def assert_same(ours: Path, whole: Path) -> None:
    """Losses, weights, optimizer state: equal to the last bit."""
    one, other = (read_metrics(folder / "metrics.csv") for folder in (ours, whole))
    for name in ("train/loss", "train/grad_norm", "lr", "val/loss"):
        assert one[name] == other[name], (name, ours)
    assert one["train/loss"][0] == list(range(1, 61))
    states = [torch.load(folder / "checkpoints/last.ckpt") for folder in (ours, whole)]
    torch.testing.assert_close(*(state["state_dict"] for state in states), atol=0, rtol=0)
    optimizers = [state["optimizer_states"][0] for state in states]
    torch.testing.assert_close(*(optimizer["state"] for optimizer in optimizers), atol=0, rtol=0)
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]
    assert not list(ours.rglob(".tmp-*"))
