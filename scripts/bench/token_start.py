"""Measures the start of training on billions of tokens in shards, and how fast batches are read from them.

    python scripts/bench/token_start.py --folder /tmp/tokens --billions 5

The folder is made of sparse files (zeros, which take no disk) with a true index, and removed at the end. The
start is that of a new process: imports, index, sizes of all shards, order of the windows, first batch; bytes
read are those of system calls; page faults show in the peak. Reading: batches of 16 windows of 1,024 tokens in the
order of training from full-sized shards with random ids, in the page cache, beside 20 times 450,000 tokens/s.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tinylm.data.shard_index import Shard, ShardIndex, ShardKey
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer

ROOT = Path(__file__).resolve().parents[2]
SHARD = 32_000_000  # tokens
START = """
import json, resource, sys, time
def read():
    return int(open("/proc/self/io").read().split("rchar: ")[1].split()[0])
from tinylm.data.batches import TrainingBatches, TrainingWindows
from tinylm.data import open_shards
began, before = time.perf_counter(), read()
parts, _ = open_shards(sys.argv[1])
opened = time.perf_counter()
windows = TrainingWindows(len(parts["train"]), 1024, 512)
batch = TrainingBatches(parts["train"], windows, 32, 1, 0)[0]
assert batch.inputs.shape == (16, 1024)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"opened": opened - began, "first": time.perf_counter() - opened, "calls": read() - before,
    "shards": len(parts["train"].pieces), "tokens": len(parts["train"]), "peak": usage.ru_maxrss * 1024}))
"""


def make_folder(folder: Path, tokens: int) -> None:
    """Writes sparse shards of the byte tokenizer, with an index."""
    folder.mkdir(parents=True)
    tokenizer = ByteTokenizer([END_OF_TEXT])
    tokenizer.save(folder / "tokenizer.tinylm.json")
    digest = hashlib.sha256(bytes(2 * SHARD)).hexdigest()
    counts = {"train": tokens // SHARD, "val": 1}
    index = ShardIndex("sparse", "0" * 64, tokenizer.sha256, "uint16", ("train", "val"), [counts])
    for key in index.keys(0):
        with (folder / key.file).open("wb") as file:
            file.truncate(2 * SHARD)
        index.shards[key] = Shard(SHARD, digest)
    index.save(folder / "index.json")


def measure_start(folder: Path) -> None:
    """Starts a process that opens the folder and makes the first batch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", START, folder], env=environment, capture_output=True, check=True)
    seconds, found = time.perf_counter() - started, json.loads(done.stdout)
    print(
        f"start: {seconds:.1f} s with the imports, until the first batch of {found['tokens']:,} tokens in "
        f"{found['shards']} shards; {found['opened']:.2f} s to open, {found['first']:.2f} s for order and batch; "
        f"{found['calls'] / 1e6:.1f} MB read, peak {found['peak'] / 1e6:,.0f} MB"
    )


def measure_reading(batches: int, megabytes: int) -> None:
    """Reads batches from shards of 64 MB of random ids."""
    from tinylm.data.batches import TrainingBatches, TrainingWindows
    from tinylm.data.token_array import TokenArray

    with tempfile.TemporaryDirectory() as folder:
        pieces = []
        for number in range(max(2, megabytes * 500_000 // SHARD)):
            path = Path(folder) / ShardKey("train", 0, number).file
            np.random.default_rng(number).integers(0, 50257, SHARD, np.uint16).tofile(path)
            pieces.append(np.memmap(path, np.uint16, "r"))
        for name, tokens in (("one array", pieces[0]), (f"{len(pieces)} shards", TokenArray(pieces))):
            read = TrainingBatches(tokens, TrainingWindows(len(tokens), 1024, 16), 1, 1, 0)
            int(np.asarray(tokens).max())  # into the page cache
            rates = []
            for turn in range(5):
                first, cpu = time.perf_counter(), time.process_time()
                for number in range(batches):
                    read[turn * batches + number]
                seconds, cpu = time.perf_counter() - first, time.process_time() - cpu
                rates.append((batches * 16 * 1024 / seconds / 1e6, batches * 16 * 1024 / cpu / 1e6))
            clock, used = sorted(rates)[2]
            print(f"reading: {name}: {clock:.1f} million tokens/s, {used:.1f} by CPU time (9.0 are 20 x 450,000)")


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the sparse shards")
    parser.add_argument("--billions", type=float, default=5.0, help="tokens (%(default)s)")
    parser.add_argument("--batches", type=int, default=500, help="batches in a measurement (%(default)s)")
    parser.add_argument("--megabytes", type=int, default=640, help="of shards to read from (%(default)s)")
    options = parser.parse_args()
    make_folder(options.folder, int(options.billions * 1e9))
    try:
        measure_start(options.folder)
        measure_start(options.folder)
    finally:
        shutil.rmtree(options.folder)
    measure_reading(options.batches, options.megabytes)


if __name__ == "__main__":
    main()
