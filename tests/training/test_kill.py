"""Killed at any moment and resumed, a run ends as if nothing had happened: to the last bit, in real processes."""

import copy
import os
import signal

import pytest
import torch

from scripts.bench import crash
from tests import processes
from tests.failpoints import run_and_kill
from tests.states import compared, snapshot

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
VARIANTS = ["epochs-steps", "mixture", "workers", "packing", "early-stopping", "numpy"]


@pytest.mark.slow
def test_thirty_runs_killed_at_any_moment_and_after_any_write_end_as_one_that_never_was(tmp_path):
    """`scripts/bench/crash.py --kills 200` has all variants."""
    cases = crash.torture(VARIANTS, kills=30, seed=1, work=tmp_path, jobs=2)
    text, good = crash.report(cases)
    assert good, text
    killed = [each for case in cases for each in case.killed]
    assert len({each.partition(" (")[0] for each in killed if each.startswith("after")}) >= 10, text
    assert sum(each.startswith("at ") for each in killed) >= 10, text


def test_a_failpoint_kills_right_after_its_call_and_a_snapshot_shows_every_bit(tmp_path):
    crash.write_inputs(tmp_path / "inputs")
    folder, config = tmp_path / "run", str(tmp_path / "inputs/crash.yaml")
    folder.mkdir()
    place = ("replace last.ckpt", 2)
    process = processes.start(
        run_and_kill, ["fit", "-c", config], folder, place, tmp_path / "log", TMPDIR=str(tmp_path)
    )
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "log").read_text().splitlines()[-1] == "replace last.ckpt"
    found = snapshot(folder)
    assert found["crash/checkpoints/last.ckpt"]["global_step"] == 8  # after step 5, then before the first validation
    changed = copy.deepcopy(found)
    weights = changed["crash/checkpoints/last.ckpt"]["state_dict"]["net.blocks.0.attention.query.weight"]
    weights.view(dtype=torch.int32)[0, 0] ^= 1
    assert not list(compared(found, copy.deepcopy(found)))
    assert list(compared(changed, found)) == [
        "crash/checkpoints/last.ckpt: state_dict: net.blocks.0.attention.query.weight: other values"
    ]
    assert list(compared(found | {"crash/extra": b""}, found)) == ["crash/extra: extra"]
