"""Benchmarks BPE training and encoding against tokenizers, tiktoken and, if installed, rustbpe.

    python scripts/bench/bpe.py TEXT... --vocab gpt2_vocab.json --merges gpt2_merges.txt

The ids of all libraries are first checked to be identical. Without GPT-2's vocabulary, the texts are encoded with one
of 10,000 tokens that is trained on them. All libraries run in turn, several times. Ratios compare median times; the
best times are printed beside them. The other libraries get the texts in pieces of the size they are fastest with, cut
between words. `tokenizers` trains on all cores and, like tiktoken and tinylm, encodes on one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # for encoding; training sets it to true
import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tinylm.tokenizer import BPETokenizer, write_tokenizer_json
from tinylm.tokenizer.fast.blocks import file_blocks
from tinylm.tokenizer.fast.pretokenize import PATTERNS, WordSplitter
from tinylm.workers import map_in_order, num_cores

VOCAB_SIZE = 10_000
PEER_CHARACTERS = 20_000_000  # of each text, encoded by the other libraries
CHAT = "Sure, I can help with that! What's the error message that you're seeing, and which version is it?"
SCRIPTS = (
    "我喜欢语言模型。日本語のテキスト 한국어 Русский язык العربية "
    "👩\u200d👩\u200d👧 🇫🇷 e\u0301 \U0001d518 naïve “x”\r\n"
) * 300


class Times:
    """Seconds taken by each side; all sides run in turn.

    Attributes:
        median: name -> the median time
        best: name -> the shortest time
    """

    def __init__(self, turns: int, sides: dict[str, Callable[[], object]]) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(turns):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - started)
        self.median = {name: median(times) for name, times in seconds.items()}
        self.best = {name: min(times) for name, times in seconds.items()}


def pieces_of(text: str, size: int) -> list[str]:
    """Cuts a text into pieces between words."""
    cut, splitter, pieces = 0, WordSplitter("gpt2"), []
    while len(text) - cut > size:
        length = splitter.safe_cut(text[cut : cut + size])
        pieces.append(text[cut : cut + length])
        cut += length
    return [*pieces, text[cut:]]


# --- training


def hugging_face(pieces: list[str]) -> tokenizers.Tokenizer:
    """Trains the same tokenizer with the tokenizers library."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    other.train_from_iterator(pieces, trainer)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return other


def bench_training(paths: list[Path], texts: list[str], turns: int) -> BPETokenizer:
    """Prints the training table and returns the trained tokenizer."""
    ours = BPETokenizer.train(paths, vocab_size=VOCAB_SIZE)
    pieces = {size: [piece for text in texts for piece in pieces_of(text, size)] for size in (1 << 12, 1 << 15)}
    other = json.loads(hugging_face(pieces[1 << 15]).to_str())["model"]
    names = {token: name for name, token in other["vocab"].items()}
    assert [[names[left], names[right]] for left, right in ours.merges] == [list(pair) for pair in other["merges"]]
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"\ntraining to {VOCAB_SIZE:,} on {size:.1f} MB ({len(ours.merges):,} merges, identical to tokenizers')")
    sides = {
        "tinylm": lambda: BPETokenizer.train(paths, vocab_size=VOCAB_SIZE),
        "tinylm, one process": lambda: BPETokenizer.train(paths, vocab_size=VOCAB_SIZE, processes=1),
        **{f"tokenizers, pieces of {s:,}": lambda s=s: hugging_face(pieces[s]) for s in pieces},
    }
    try:
        import rustbpe

        sides["rustbpe"] = lambda: rustbpe.Tokenizer().train_from_iterator(
            iter(pieces[1 << 15]), VOCAB_SIZE, pattern=PATTERNS["gpt2"]
        )
    except ImportError:
        print("rustbpe is not installed")
    times = Times(turns, sides)
    peer = min(seconds for name, seconds in times.median.items() if name.startswith("tokenizers"))
    for name, seconds in times.median.items():
        print(f"  {name:30} {seconds:6.2f} s (best {times.best[name]:5.2f})   {peer / seconds:5.2f} x tokenizers")
    return ours


# --- encoding


class Peers:
    """tiktoken and tokenizers with the vocabulary of a tinylm tokenizer."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        ranks = {piece: token for token, piece in enumerate(tokenizer.token_bytes[: 256 + len(tokenizer.merges)])}
        self.tiktoken = tiktoken.Encoding("t", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer_json(tokenizer, Path(folder) / "tokenizer.json")
            self.tokenizers = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")

    def check(self, text: str, ids: list[int]) -> None:
        """Raises AssertionError if either library gives different ids."""
        assert self.tiktoken.encode_ordinary(text) == ids
        pieces = self.tokenizers.encode_batch_fast(pieces_of(text, 1 << 15), add_special_tokens=False)
        assert [token for piece in pieces for token in piece.ids] == ids


def fresh(tokenizer: BPETokenizer) -> BPETokenizer:
    """Copies a tokenizer without its cache of known words, and warms it up."""
    copy = BPETokenizer(tokenizer.merges, tokenizer.pattern, list(tokenizer.special_tokens))
    copy.encode(SCRIPTS)
    return copy


def bench_encoding(path: Path, text: str, tokenizer: BPETokenizer, peers: Peers, turns: int) -> None:
    """Prints the bulk encoding table of one text."""
    part = text if len(text) <= PEER_CHARACTERS else text[: tokenizer.safe_cut(text[:PEER_CHARACTERS])]
    peers.check(part, tokenizer.encode(part))
    ids = tokenizer.encode_file(path)
    assert np.array_equal(ids, tokenizer.encode_file(path, processes=2))
    assert tokenizer.decode(tokenizer.encode(part)) == part
    size, part_size, pieces = path.stat().st_size / 1e6, len(part.encode()) / 1e6, pieces_of(part, 1 << 15)
    print(f"\nencoding {path.name}, {size:.1f} MB, vocabulary {tokenizer.vocab_size:,}: {len(ids):,} ids, identical")
    new = [fresh(tokenizer) for _ in range(2 * turns)]
    sides = {
        "tinylm, cold word cache": lambda: new.pop().encode_file(path),
        "tinylm, warm word cache": lambda: tokenizer.encode_file(path),
        "tiktoken": lambda: peers.tiktoken.encode_ordinary(part),
        "tokenizers": lambda: peers.tokenizers.encode_batch_fast(pieces, add_special_tokens=False),
    }
    if size > 50:  # in smaller files, starting the helpers takes longer than encoding
        sides["tinylm, two processes"] = lambda: new.pop().encode_file(path, processes=2)
    times = Times(turns, sides)
    sizes = {name: size if "tinylm" in name else part_size for name in sides}
    speeds = {name: sizes[name] / seconds for name, seconds in times.median.items()}
    first = speeds["tinylm, cold word cache"]
    for name, speed in speeds.items():
        ratios = f"{speed / speeds['tiktoken']:5.2f} x tiktoken   {speed / speeds['tokenizers']:6.2f} x tokenizers"
        most = sizes[name] / times.best[name]
        print(f"  {name:30} {speed:6.1f} MB/s (best {most:5.1f})   {ratios}   {speed / first:5.2f} x the first")


def bench_short(tokenizer: BPETokenizer, peers: Peers, turns: int) -> None:
    """Prints the encoding table of one short text."""
    ids = tokenizer.encode(CHAT)
    peers.check(CHAT, ids)
    print(f"\na chat line of {len(CHAT)} characters, {len(ids)} ids, identical")
    sides: dict[str, Callable[[str], object]] = {
        "tinylm": tokenizer.encode,
        "tokenizers": lambda text: peers.tokenizers.encode(text).ids,
        "tiktoken": peers.tiktoken.encode_ordinary,
    }

    def thousand(encode: Callable[[str], object]) -> Callable[[], object]:
        return lambda: [encode(CHAT) for _ in range(1000)]

    times = Times(5 * turns, {name: thousand(encode) for name, encode in sides.items()})
    for name, seconds in times.median.items():
        ratio = f"{times.median['tokenizers'] / seconds:5.2f} x tokenizers"
        print(f"  {name:30} {1e3 * seconds:6.1f} microseconds (best {1e3 * times.best[name]:5.1f})   {ratio}")


# --- memory


def peak_of(what: str, path: Path, limit: int, tokenizer: Path) -> None:
    """Trains on a file or encodes it, then prints the peak memory of this process in MiB."""
    if what == "training":
        BPETokenizer.train([path], vocab_size=VOCAB_SIZE, processes=1, memory_limit=limit)
    else:
        from tinylm.tokenizer import load_tokenizer

        loaded = load_tokenizer(tokenizer)
        for _ in map_in_order(loaded.encode_packed, file_blocks(path, loaded.safe_cut)):
            pass
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)  # Linux


def bench_memory(path: Path, tokenizer: BPETokenizer) -> None:
    """Prints the memory table, with a limit of a tenth of the text's size."""
    limit = max(1, path.stat().st_size // 10_000_000)
    print(f"\npeak memory of one process, {path.name}, {path.stat().st_size / 1e6:.0f} MB; limit {limit} MB + 200 MB")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/t.json")
        for what in ("training", "encoding"):
            command = [sys.executable, __file__, "--peak", what, str(limit), f"{folder}/t.json", "--", str(path)]
            peak = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            print(f"  {what:30} {peak:6} MB   {'within' if peak <= limit + 200 else 'ABOVE'} {limit + 200} MB")


def main() -> None:
    """Runs all benchmarks and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--vocab", type=Path, help="GPT-2's vocab.json")
    parser.add_argument("--merges", type=Path, help="GPT-2's merges.txt")
    parser.add_argument("--turns", type=int, default=5, help="runs of each library (%(default)s)")
    parser.add_argument("--train-on", type=int, default=2, help="number of texts to train on (%(default)s)")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak_of(options.peak[0], options.texts[0], int(options.peak[1]), Path(options.peak[2]))
    texts = [path.read_bytes().decode() for path in options.texts]
    print(f"{num_cores()} cores, Python {sys.version.split()[0]}, tokenizers {tokenizers.__version__}, "
          f"tiktoken {tiktoken.__version__}")  # fmt: skip
    count = options.train_on
    trained = bench_training(options.texts[:count], texts[:count], options.turns)
    gpt2 = BPETokenizer.from_gpt2(options.vocab, options.merges) if options.vocab and options.merges else trained
    peers = Peers(gpt2)
    peers.check(SCRIPTS, gpt2.encode(SCRIPTS))
    for path, text in zip(options.texts, texts, strict=True):
        bench_encoding(path, text, gpt2, peers, options.turns)
    bench_short(gpt2, peers, options.turns)
    bench_memory(max(options.texts, key=lambda path: path.stat().st_size), gpt2)


if __name__ == "__main__":
    main()
