"""Benchmarks training of the unigram model against sentencepiece.

    python scripts/bench/pieces.py train TEXT --sizes 1000 8000

Both sides train in turn, each in a process of its own. Seconds include reading the text and counting its words, but not
the start of the program; memory is the peak of the whole process. sentencepiece works with all cores, tinylm with one.

Both learn from the same lines without normalization. The size of a vocabulary includes 256 bytes and three special
tokens on both sides, so both have the same number of other pieces. The loss is that of GPT-2's words, in nats per byte,
computed by one routine for both vocabularies: of the best segmentation, and of the sum over all segmentations.
Characters without a piece have the log probability that sentencepiece gives them, 10 less than that of the rarest
piece. sentencepiece does not know these words and may learn pieces across them, so the loss of its own segmentation of
whole lines is printed as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tinylm.tokenizer.fast.blocks import Block, file_blocks
from tinylm.tokenizer.fast.lattice import Lattice
from tinylm.tokenizer.fast.pretokenize import WordSplitter
from tinylm.tokenizer.fast.unigram_learning import Corpus, learn_unigram
from tinylm.tokenizer.fast.words import BlockCounter, WordCounter

META = 259  # 256 bytes, <unk>, <s> and </s>
UNKNOWN = -10.0  # log probability of an unknown character, relative to the least of a piece
PATTERN = "gpt2"


def count_words(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The words of the lines of a file, without line ends: their UTF-8, sizes and counts."""
    count, total = BlockCounter(PATTERN), WordCounter()
    for block in file_blocks(path, WordSplitter(PATTERN).safe_cut):
        _, *counted = count(Block(block.data.decode().split("\n")))
        total.add(*counted)
    return total.take()


# --- the two sides, each in a process of its own


def with_tinylm(path: Path, size: int, _: Path) -> dict[str, float]:
    """Trains with tinylm; returns pieces and log probabilities."""
    pieces, scores = learn_unigram(*count_words(path), size - META)
    return dict(zip(pieces, scores, strict=True))


def with_sentencepiece(path: Path, size: int, folder: Path) -> dict[str, float]:
    """Trains with sentencepiece; returns pieces and log probabilities."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(path),
        model_prefix=str(folder / "unigram"),
        vocab_size=size,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,  # at 8,000 pieces its loss is higher without them
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "unigram.model"))
    return {model.id_to_piece(i).replace("\u2581", " "): model.get_score(i) for i in ordinary(model)}


def ordinary(model: Any) -> list[int]:
    """The ids of sentencepiece's pieces that are not bytes or special tokens."""
    ids = range(model.get_piece_size())
    return [i for i in ids if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]


SIDES: dict[str, Callable[[Path, int, Path], dict[str, float]]] = {
    "tinylm": with_tinylm,
    "sentencepiece": with_sentencepiece,
}


def train_here(side: str, path: Path, size: int, folder: Path) -> None:
    """Trains in this process, and prints seconds, the peak memory in MB and the pieces as JSON."""
    if side == "sentencepiece":
        import sentencepiece  # noqa: F401  (the time of the import does not count)
    started = time.perf_counter()
    pieces = SIDES[side](path, size, folder)
    seconds = time.perf_counter() - started
    memory = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024  # Linux
    print(json.dumps({"seconds": seconds, "memory": memory, "pieces": pieces}))


def train_apart(side: str, path: Path, size: int, folder: Path) -> dict[str, Any]:
    """Like `train_here` in a process of its own."""
    command = [sys.executable, __file__, "side", side, str(path), str(size), str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


# --- loss


class Words:
    """Counted words, for the loss of any vocabulary.

    Attributes:
        num_bytes: of all words
    """

    def __init__(self, words: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> None:
        self._corpus = Corpus(words, sizes, counts, coverage=1.0)
        symbols = np.array(["\n", *self._corpus.characters])
        self._text = "".join(symbols[self._corpus.symbols].tolist())
        self.num_bytes = int(sizes @ counts)

    def losses(self, pieces: dict[str, float]) -> tuple[float, float]:
        """Nats per byte of the best segmentation, and of all segmentations."""
        unknown = min(pieces.values()) + UNKNOWN
        scores = dict.fromkeys(self._corpus.characters, unknown) | pieces
        number = {piece: index for index, piece in enumerate(scores)}
        occurrences = []
        for length in range(1, max(map(len, scores)) + 1):
            found = [number.get(self._text[i : i + length], -1) for i in range(len(self._text))]
            places = np.flatnonzero(np.array(found) >= 0)
            occurrences.append((length, places, np.array(found)[places]))
        lattice = Lattice(self._corpus.starts, self._corpus.sizes, occurrences)
        log_probs = np.array([*scores.values()])
        best = lattice.best(log_probs) @ self._corpus.counts
        return -best / self.num_bytes, -lattice.expected(log_probs, self._corpus.counts)[1] / self.num_bytes


def loss_of_lines(path: Path, model_file: Path, num_bytes: int) -> float:
    """Nats per byte of sentencepiece's own segmentation of whole lines."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    text = path.read_bytes().decode()
    ids = np.concatenate([np.array(line, dtype=np.int64) for line in model.encode(text.split("\n"))])
    pieces = ordinary(model)
    scores = np.zeros(model.get_piece_size())  # bytes have none: their character has the score of an unknown one
    scores[pieces] = [model.get_score(i) for i in pieces]
    characters = {model.id_to_piece(i) for i in pieces}
    rare = sum(count for char, count in Counter(text.replace(" ", "\u2581")).items() if char not in characters | {"\n"})
    return -float(scores[ids].sum() + rare * (scores[pieces].min() + UNKNOWN)) / num_bytes


# --- tables


def bench_training(path: Path, sizes: list[int], turns: int) -> None:
    """Prints a table for each size of the vocabulary."""
    words = Words(*count_words(path))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            runs = {side: [] for side in SIDES}
            for _ in range(turns):
                for side in SIDES:
                    runs[side].append(train_apart(side, path, size, Path(folder)))
            lines = loss_of_lines(path, Path(folder) / "unigram.model", words.num_bytes)
        rows = {}
        for side, found in runs.items():
            rows[side] = [median(run[name] for run in found) for name in ("seconds", "memory")]
            rows[side] += words.losses(found[0]["pieces"])
        rows["ratio"] = [ours / theirs for ours, theirs in zip(*rows.values(), strict=True)]
        print(f"\nunigram, {size:,} tokens, {path.name}, {path.stat().st_size / 1e6:.1f} MB")
        print(f"  {'':14} {'seconds':>9} {'MB':>7} {'nats/byte, best':>17} {'all':>9}")
        for name, (seconds, memory, best, every) in rows.items():
            wide = ".2f" if name == "ratio" else ".0f"
            print(f"  {name:14} {seconds:9.2f} {memory:7{wide}} {best:17.4f} {every:9.4f}")
        print(f"  sentencepiece's own segmentation of whole lines: {lines:.4f} nats/byte")


def main() -> None:
    """Runs the benchmark of the subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="time, memory and loss of training")
    train.add_argument("text", type=Path, metavar="TEXT")
    train.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 8000], help="vocabularies, in tokens (%(default)s)"
    )
    train.add_argument("--turns", type=int, default=3, help="runs of each side; their median is printed (%(default)s)")
    side = commands.add_parser("side", description="one run in this process; the tables call it")
    for name, kind in {"side": str, "text": Path, "size": int, "folder": Path}.items():
        side.add_argument(name, type=kind)
    options = parser.parse_args()
    if options.command == "side":
        train_here(options.side, options.text, options.size, options.folder)
    else:
        bench_training(options.text, options.sizes, options.turns)


if __name__ == "__main__":
    main()
