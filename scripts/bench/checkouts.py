"""Compares two checkouts of tinylm in CPU time: a step, a save, and a whole run of small's first steps.

    git worktree add ../before 8b4e3f9
    python scripts/bench/checkouts.py ../before . --turns 3

Both train at the same time, each on one core of its own, and exchange cores at every turn, so other work on the machine
and the cores' own speeds affect both alike.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import statistics, sys, time
import lightning.pytorch as pl
from tinylm.commands import main
from tinylm.training.module import LitTransformerLM

starts, saves = [], []
step, save = LitTransformerLM.training_step, pl.Trainer.save_checkpoint

def timed_step(self, *given, **options):
    starts.append(time.process_time())
    return step(self, *given, **options)

def timed_save(self, *given, **options):
    clock = time.process_time(), time.perf_counter()
    save(self, *given, **options)
    saves.append((time.process_time() - clock[0], time.perf_counter() - clock[1]))

LitTransformerLM.training_step, pl.Trainer.save_checkpoint = timed_step, timed_save
sys.argv = ["tinylm", "fit", "-c", "small", "--trainer.max_steps", "170", "--trainer.val_check_interval", "85",
            "--run.sample_tokens", "0"]
main()
steps = statistics.median(after - before for before, after in zip(starts, starts[1:]))
cpu, wall = (statistics.median(column) for column in zip(*saves))
print("MEASURED", steps, cpu, wall, len(saves), time.process_time())
"""
NAMES = ("CPU seconds per step", "CPU seconds per save", "seconds per save", "saves", "CPU seconds of the run")


def start(checkout: Path, core: int, place: Path) -> subprocess.Popen[str]:
    """Trains with a checkout on one core."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    environment["TINYLM_CACHE"] = str(place / "cache")
    place.mkdir()
    command = ["taskset", "-c", str(core), sys.executable, "-c", CHILD]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def main() -> None:
    """Prints the medians of both checkouts and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    rows: list[list[list[float]]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            started = [
                start(checkout, (turn + i) % 2, Path(folder) / f"{turn}-{i}")
                for i, checkout in enumerate(options.checkouts)
            ]
            for i, process in enumerate(started):
                said = re.search("MEASURED (.*)", process.communicate()[0])
                if said is None:
                    sys.exit(f"{options.checkouts[i]}: training failed")
                rows[i].append([float(value) for value in said[1].split()])
    for name, before, after in zip(NAMES, zip(*rows[0], strict=True), zip(*rows[1], strict=True), strict=True):
        first, second = statistics.median(before), statistics.median(after)
        print(f"{name}: {first:.4g}, {second:.4g}, ratio {second / first:.3f}")


if __name__ == "__main__":
    main()
