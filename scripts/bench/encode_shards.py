"""Measures encoding of a large corpus into token shards beside tiktoken and Hugging Face datasets.

    python scripts/bench/encode_shards.py --data data --work /tmp/encode --megabytes 10000 --sample 200 --turns 3

The corpus is generated once: JSON lines, compressed with Zstandard, of shuffled sentences of real texts (--texts), in
which one word of forty is new, about as often as in web pages. First all sides encode a sample of it with GPT-2's
vocabulary, by turns, on two processes or threads each: MB/s of text by the clock and by CPU time. `datasets` is given
the time of `map` alone; loading is printed apart. Then tinylm encodes the whole corpus, is killed halfway and
continues; memory is the sum over its processes, read from /proc every tenth of a second.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("tinylm", "tiktoken", "datasets")


# --- the corpus


def make_corpus(path: Path, megabytes: float, texts: list[Path], seed: int = 0) -> None:
    """Writes documents of 200 to 20,000 characters until they have so many megabytes of text."""
    import zstandard

    sentences = [
        sentence
        for text in texts
        for sentence in re.split(r"(?<=[.!?:])\s+", text.read_text(encoding="utf-8"))
        if sentence.strip()
    ]
    drawn, words = random.Random(seed), sorted({word for each in sentences for word in re.findall(r"[a-z]{4,}", each)})
    compressed, written = path.suffix == ".zst", 0
    with path.open("wb") as raw:
        file = zstandard.ZstdCompressor(level=3).stream_writer(raw) if compressed else raw
        while written < megabytes * 1e6:
            size, document = 200 * 100 ** drawn.random(), []
            while size > 0:
                sentence = drawn.choice(sentences)
                for _ in range(len(sentence) // 240 + (drawn.random() < len(sentence) % 240 / 240)):
                    sentence += " " + drawn.choice(words)[:-2] + drawn.choice(words)[2:]
                document.append(sentence)
                size -= len(sentence)
            text = " ".join(document)
            line = json.dumps({"text": text}, ensure_ascii=False) if ".jsonl" in path.name else text
            file.write(line.encode() + b"\n")
            written += len(text.encode())
        if compressed:
            file.close()


def texts_of(path: Path):
    """The texts of the corpus, as any program would read them."""
    import io

    import zstandard

    with path.open("rb") as raw:
        file = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        for line in io.TextIOWrapper(file, encoding="utf-8", newline="\n"):
            yield json.loads(line)["text"] if ".jsonl" in path.name else line


# --- the other sides, each in a process of its own


def encode_with_tiktoken(source: Path, work: Path) -> None:
    """Encodes with two threads, and writes uint16."""
    import base64
    from itertools import islice

    import numpy as np
    import tiktoken

    lines = (work / "gpt2.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    started, count = time.perf_counter(), 0
    with (work / "tiktoken.bin").open("wb") as file:
        texts = texts_of(source)
        while batch := list(islice(texts, 1000)):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=2):
                file.write(np.array([*ids, 50256], np.uint16).tobytes())
                count += len(ids) + 1
    print(json.dumps({"seconds": time.perf_counter() - started, "tokens": count}))


def encode_with_datasets(source: Path, work: Path) -> None:
    """Encodes with `datasets.map` in two processes, and Hugging Face's fast tokenizer."""
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    started = time.perf_counter()
    kind = "json" if ".jsonl" in source.name else "text"
    data = datasets.load_dataset(kind, data_files=str(source), split="train", cache_dir=str(work / "datasets"))
    loaded = time.perf_counter()
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    def encode(batch: dict) -> dict:
        return {"ids": [each.ids for each in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    found = data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names)
    seconds = time.perf_counter() - loaded
    shutil.rmtree(work / "datasets")
    print(json.dumps({"seconds": seconds, "loading": loaded - started, "tokens": -1 if found is None else len(found)}))


# --- measuring


def memory_of(process: int) -> tuple[int, int]:
    """Resident bytes of a process, and of it with all below it."""
    try:
        status = Path(f"/proc/{process}/statm").read_text().split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0, 0
    own = int(status[1]) * resource.getpagesize()
    return own, own + sum(memory_of(int(child))[1] for child in children)


def run(command: list[str], environment: dict[str, str], until: float | None = None) -> dict:
    """Runs a command: seconds, CPU seconds, peak bytes of the process and of all. Killed when `until` says so."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peaks = time.perf_counter(), [0, 0]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peaks = [max(pair) for pair in zip(peaks, memory_of(process.pid), strict=True)]
        if until is not None and time.perf_counter() - started > until:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    out = process.communicate()[0]
    assert process.returncode == (0 if until is None else -signal.SIGKILL), process.returncode
    said = json.loads(out.splitlines()[-1]) if out.startswith("{") else {}
    return {"seconds": seconds, "cpu": cpu, "peak": peaks[0], "peak_all": peaks[1]} | said


class Bench:
    """The commands of all sides."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYLM_CACHE": str(work / "cache")}
        self.environment |= {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def prepare(self, data: Path) -> None:
        """Writes GPT-2's vocabulary in the format of each side."""
        from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, write_tiktoken, write_tokenizer_json

        tokenizer = BPETokenizer.from_gpt2(data / "gpt2_vocab.json", data / "gpt2_merges.txt")
        assert tokenizer.end_of_text == tokenizer.special_tokens[END_OF_TEXT] == 50256
        tokenizer.save(self.work / "gpt2.json", overwrite=True)
        for name, write in (("tokenizer.json", write_tokenizer_json), ("gpt2.tiktoken", write_tiktoken)):
            (self.work / name).unlink(missing_ok=True)
            write(tokenizer, self.work / name, False)

    def command(self, side: str, source: Path, out: Path) -> list[str]:
        """The command line that encodes a corpus."""
        if side == "tinylm":
            words = ["prepare", "tokens", source, "--tokenizer", self.work / "gpt2.json", "--out", out]
            return [sys.executable, "-m", "tinylm", *map(str, words)]
        return [sys.executable, __file__, "--side", side, "--source", str(source), "--work", str(self.work)]

    def sample(self, source: Path, megabytes: float, turns: int, sides: list[str]) -> None:
        """All sides by turns."""
        found: dict[str, list[dict]] = {side: [] for side in sides}
        for _ in range(turns):
            for side in sides:
                shutil.rmtree(self.work / "sample", ignore_errors=True)
                found[side].append(run(self.command(side, source, self.work / "sample"), self.environment))
        for side, results in found.items():
            rates = [megabytes / each["seconds"] for each in results]
            cpu = statistics.median(each["cpu"] for each in results) / megabytes
            loading = f", loading {results[0]['loading']:.1f} s more" if "loading" in results[0] else ""
            print(
                f"{side:9} {statistics.median(rates):6.1f} MB/s ({min(rates):.1f} to {max(rates):.1f}), "
                f"{1 / cpu:5.1f} MB per CPU second, peak {results[-1]['peak_all'] / 1e6:,.0f} MB{loading}"
            )

    def whole(self, source: Path, megabytes: float) -> None:
        """Encodes the whole corpus in one run, then again with a kill halfway."""
        for name in ("whole", "killed"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        one = run(self.command("tinylm", source, self.work / "whole"), self.environment)
        print(
            f"whole     {megabytes:,.0f} MB in {one['seconds']:.1f} s: {megabytes / one['seconds']:.1f} MB/s, "
            f"{megabytes / one['cpu']:.1f} MB per CPU second; "
            f"peak {one['peak'] / 1e6:,.0f} MB in the parent, {one['peak_all'] / 1e6:,.0f} MB in all processes"
        )
        command = self.command("tinylm", source, self.work / "killed")
        run(command, self.environment, until=one["seconds"] / 2)
        done = len(list((self.work / "killed").glob("*.bin")))
        again = run(command, self.environment)
        files = sorted(path.name for path in (self.work / "whole").iterdir())
        same = files == sorted(path.name for path in (self.work / "killed").iterdir()) and all(
            (self.work / "whole" / name).read_bytes() == (self.work / "killed" / name).read_bytes() for name in files
        )
        print(
            f"killed after {one['seconds'] / 2:.1f} s with {done} of {len(files) - 2} shards, gone on in "
            f"{again['seconds']:.1f} s: {'equal' if same else 'NOT EQUAL'} byte for byte"
        )
        for name in ("whole", "killed"):
            shutil.rmtree(self.work / name)


def main() -> None:
    """Runs the comparison, or one of its sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus and all outputs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of GPT-2's two files and of the texts")
    parser.add_argument("--texts", nargs="+", default=["prose.txt", "tinyshakespeare.txt"], help="in --data")
    parser.add_argument("--megabytes", type=float, default=10_000, help="of the whole corpus; 0: the sample only")
    parser.add_argument("--sample", type=float, default=200, help="megabytes of the sample; 0: the whole only")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--form", default="jsonl.zst", help="jsonl.zst, jsonl or txt")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"tiktoken": encode_with_tiktoken, "datasets": encode_with_datasets}[options.side](options.source, options.work)
        return
    sys.path.insert(0, str(ROOT))
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work)
    bench.prepare(options.data)
    paths = {size: options.work / f"corpus-{size:.0f}.{options.form}" for size in (options.sample, options.megabytes)}
    for seed, (size, path) in enumerate(paths.items()):
        if size and not path.exists():
            make_corpus(path, size, [options.data / name for name in options.texts], seed)
    if options.sample:
        bench.sample(paths[options.sample], options.sample, options.turns, options.sides.split(","))
    if options.megabytes:
        bench.whole(paths[options.megabytes], options.megabytes)


if __name__ == "__main__":
    main()
