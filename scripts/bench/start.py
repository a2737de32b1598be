"""Measures startup times: `python scripts/bench/start.py [--against CHECKOUT]`.

Help and mistakes are timed until the process ends; training and generation until a line appears. Each turn is a new
process, and the two checkouts take turns. Prints the medians of wall-clock and processor time in seconds; the latter
hardly depends on what else the machine is doing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MISTAKES = ["--trainer.max_stepz 5", "--model.network.n_layer 4", "--trainer.max_steps abc", "-c typo.yaml", "my.txt"]
HELP = ["--help", "configs", "fit --help", "generate --help", "prepare --help", "train-numpy --help", "fit -c smal"]
HELP += [f"fit -c small {mistake}" for mistake in MISTAKES] + ["train-numpy -c tiny --trainer.max_stepz 5"]
SHORT = "--trainer.max_steps 2 --trainer.log_every_n_steps 1 --run.sample_tokens 0 --run.name it"
FIT = f"fit -c tiny --trainer.val_check_interval 2 {SHORT}"
CASES = [(words, "") for words in HELP] + [
    ("fit --trainer.help", ""), (FIT, "tinylm: run"), (FIT, "step 2"), (f"fit -c small {SHORT}", "step 1"),
    ("generate --max-new-tokens 1", "tinylm: "), ("generate --max-new-tokens 1", ""),
    ("generate --model storyteller --seed 1", ""),
]  # fmt: skip


def seconds(words: str, folder: str, checkout: Path, until: str = "") -> tuple[float, float]:
    """Wall-clock and processor time until a command prints a line with `until`; if that is empty, until it ends."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tinylm", *words.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(checkout)}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, cwd=folder, env=environment, **streams)
    assert process.stdout is not None
    found = None
    for line in process.stdout:
        if until and until in line and found is None:
            found = time.perf_counter() - started, so_far(process.pid)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # taken by wait4
    return found or (time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def so_far(process: int) -> float:
    """Processor time of a running process, from Linux's /proc."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="", help="commands that contain this")
    parser.add_argument("--against", type=Path, help="another checkout, for a second column and the ratio")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    checkouts = [here, *([options.against.resolve()] if options.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "typo.yaml").write_text("trainer: {max_stepz: 5}\n", encoding="utf-8")
        for checkout in checkouts:  # a warm-up: encodes the corpus, fills the file cache and compiles the modules
            seconds(FIT, folder, checkout)
        for words, until in CASES:
            if options.only not in words:
                continue
            turns = [[seconds(words, folder, each, until) for each in checkouts] for _ in range(options.turns)]
            columns = [
                [statistics.median(times) for times in zip(*side, strict=True)] for side in zip(*turns, strict=True)
            ]
            text = "   ".join(f"{wall:6.2f} s, CPU {cpu:6.2f} s" for wall, cpu in columns)
            ratio = f"   CPU {columns[1][1] / columns[0][1]:.1f} x" if options.against else ""
            print(f"{(words + (f' ({until})' if until else ''))[:60]:62}{text}{ratio}", flush=True)


if __name__ == "__main__":
    main()
