"""Compares what `tinylm fit -c auto` promises with the outcome: `python scripts/bench/budget.py --budget 5min`.

Prints the time and the loss that were promised and measured. `--against small` first trains that config, and gives its
own time, from start to end, as the budget: both losses are then compared at equal time. `--keep FOLDER` keeps the runs.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
LOSS = re.compile(r"tinylm: [\d,]+ steps in .*, validation loss ([\d.]+), floor ([\d.]+)")
PROMISE = re.compile(r"auto: expected: (?:validation loss ([\d.]+) \(([\d.]+) to ([\d.]+)\)|no promise)")


def fit(words: list[str], folder: Path) -> tuple[float, str]:
    """Seconds from start to end of a `fit`, and what it prints."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tinylm", "fit", *words]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, cwd=folder, env=environment, **streams)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(f"{time.perf_counter() - started:7.1f} s  {line}", end="", flush=True)
        lines.append(line)
    if process.wait():
        sys.exit(process.returncode)
    return time.perf_counter() - started, "".join(lines)


def excess(text: str) -> tuple[float, float]:
    """Final validation loss and floor of a run."""
    found = LOSS.search(text)
    assert found is not None, text
    return float(found[1]), float(found[2])


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="5min")
    parser.add_argument("--against", help="a config whose time is the budget")
    parser.add_argument("--keep", type=Path, help="folder of the runs; must not exist")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if options.keep is None else options.keep
    folder.mkdir(parents=True, exist_ok=options.keep is None)
    budget, other = options.budget, None
    if options.against:
        seconds, text = fit(["-c", options.against], folder)
        budget, other = f"{seconds:.0f}s", excess(text)
    seconds, text = fit(["-c", "auto", "--budget", budget], folder)
    loss, floor = excess(text)
    amount, unit = re.fullmatch(r"([\d.]+) *(\w+)", budget).groups()  # pyright: ignore[reportOptionalMemberAccess]
    promised = float(amount) * {"s": 1, "min": 60, "h": 3600}[unit]
    print(f"\ntime: promised {promised:.0f} s, measured {seconds:.0f} s: {seconds / promised - 1:+.1%}")
    expected = PROMISE.search(text)
    if expected is not None and expected[1]:
        inside = "inside" if float(expected[2]) <= loss <= float(expected[3]) else "outside"
        deviation = loss / float(expected[1]) - 1
        print(f"loss: promised {expected[1]}, measured {loss}: {deviation:+.1%}, {inside} the interval")
    if other is not None:
        ours, theirs = loss / floor - 1, other[0] / other[1] - 1
        print(f"above the floor at equal time: auto {ours:.1%}, {options.against} {theirs:.1%}")


if __name__ == "__main__":
    main()
