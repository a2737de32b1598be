"""The script that damages files and fills disks, on a small scale; docs/faults.md has the figures of the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="rlimits are POSIX's")
def test_no_damage_is_silently_wrong_and_every_full_disk_is_74():
    options = ["--flips", "48", "--cuts", "24", "--sizes", "3", "--seed", "7"]
    command = [sys.executable, ROOT / "scripts" / "bench" / "damage.py", *options]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
