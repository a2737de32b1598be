"""How soon a command answers: `python scripts/bench/start.py`, in an empty folder, with tinylm installed.

Help is timed to its end; a training run, and generation from it, to the first line and to the first step or token.
Medians and ranges of some turns, in milliseconds, each in a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

HELP = [["--help"], ["generate", "--help"], ["fit", "--help"], ["configs"], ["fit", "-c", "smal"]]
SHORT = ["--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1", "--run.sample_tokens", "0", "--run.name", "it"]
FIT = ["fit", "-c", "tiny", "--trainer.val_check_interval", "2", *SHORT]


def milliseconds(words: list[str], folder: str, until: str = "") -> float:
    """The time until a command prints a line that has a text in it, or ends if the text is empty."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tinylm", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, cwd=folder, env=environment, **both)
    assert process.stdout is not None
    found = None
    for line in process.stdout:
        if until and until in line and found is None:
            found = time.perf_counter() - started
    process.wait()
    return 1000 * (time.perf_counter() - started if found is None else found)


def main() -> None:
    """Prints a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        milliseconds(FIT, folder)  # the corpus is encoded, and files are in memory
        cases = [(" ".join(words), words, "") for words in HELP]
        cases += [("fit -c tiny: first line", FIT, "tinylm: "), ("fit -c tiny: second step", FIT, "step 2")]
        cases += [("generate: first line", ["generate", "--max-new-tokens", "1"], "tinylm: ")]
        cases += [("generate: one token", ["generate", "--max-new-tokens", "1"], "")]
        for name, words, until in cases:
            found = [milliseconds(words, folder, until) for _ in range(turns)]
            print(f"{name:28}{statistics.median(found):7,.0f} ms  ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
