"""Benchmarks WordPiece training, and encoding by WordPiece and unigram models, against tokenizers.

    python scripts/bench/encode_pieces.py TEXT

All sides run in turn, medians of `--turns`. Each training has a process of its own: seconds include reading the text
and counting its words, but not the start of the program; memory is the peak of the whole process. tokenizers trains on
all cores and, like tinylm, encodes on one: tokenizers gets the text in parts of about 8,000 characters, with which it
is fastest, tinylm gets the file. tinylm's tokenizers start with an empty word cache. The ids of all parts are checked
to be identical.
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
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # for encoding; training sets it to true

SIZE, PART = 8000, 8000  # tokens of a vocabulary, characters of a part
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def with_tokenizers(path: Path, lowercase: bool) -> Any:
    """WordPiece as for BERT, trained by tokenizers."""
    import tokenizers  # here, so that the other side's memory is its own
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    other = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    other.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # pyright: ignore[reportAttributeAccessIssue]
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    other.train([str(path)], trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=SPECIAL, show_progress=False))
    return other


def with_tinylm(path: Path, lowercase: bool) -> Any:
    """WordPiece as for BERT, trained by tinylm."""
    from tinylm.tokenizer import WordPieceTokenizer

    normalizer = {"kind": "bert", "lowercase": lowercase}
    return WordPieceTokenizer.train(
        [path], vocab_size=SIZE, pattern="bert", normalizer=normalizer, special_tokens=SPECIAL
    )


def lossless(path: Path, _: bool) -> Any:
    """WordPiece on GPT-2's words, trained by tinylm."""
    from tinylm.tokenizer import WordPieceTokenizer

    return WordPieceTokenizer.train([path], vocab_size=SIZE)


TRAINED: dict[str, Callable[[Path, bool], object]] = {
    "tokenizers": with_tokenizers,
    "tinylm": with_tinylm,
    "tinylm, GPT-2's words": lossless,
}


def train_here(side: str, path: Path, lowercase: bool) -> None:
    """Trains in this process, and prints seconds and the peak memory in MB."""
    started = time.perf_counter()
    TRAINED[side](path, lowercase)
    seconds = time.perf_counter() - started
    memory = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024  # Linux
    print(json.dumps({"seconds": seconds, "memory": memory}))


def bench_training(path: Path, turns: int) -> None:
    """Prints a table of WordPiece training."""
    for lowercase in (False, True):
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in TRAINED}
        for _ in range(turns):
            for side, found in runs.items():
                command = [sys.executable, __file__, str(path), "--side", side, *(["--lowercase"] if lowercase else [])]
                found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        print(f"\nWordPiece, {SIZE:,} tokens, {'un' if lowercase else ''}cased: seconds, MB, seconds of tokenizers")
        theirs = median(each["seconds"] for each in runs["tokenizers"])
        for side, found in runs.items():
            seconds = median(each["seconds"] for each in found)
            print(f"  {side:22} {seconds:6.2f} {median(each['memory'] for each in found):5.0f} {theirs / seconds:6.2f}")


def parts_of(text: str) -> list[str]:
    """Cuts a text at line ends into parts of about `PART` characters."""
    parts, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin + PART) + 1 or len(text)
        parts.append(text[begin:end])
        begin = end
    return parts


def bench_encoding(path: Path, turns: int) -> None:
    """Prints a table of encoding speeds."""
    import tokenizers

    from tinylm.tokenizer import Tokenizer, UnigramTokenizer, WordPieceTokenizer, load_tokenizer, write_tokenizer_json
    from tinylm.tokenizer.fast.blocks import Block

    parts = parts_of(path.read_bytes().decode())
    size = sum(len(part.encode()) for part in parts) / 1e6
    print(f"\nEncoding, {SIZE:,} tokens, one thread: MB/s of tinylm, of tokenizers, ratio")
    made: dict[str, Callable[[], Any]] = {
        "WordPiece, BERT cased": lambda: with_tokenizers(path, False),
        "WordPiece, BERT uncased": lambda: with_tokenizers(path, True),
        "WordPiece, GPT-2's words": lambda: WordPieceTokenizer.train([path], vocab_size=SIZE),
        "unigram": lambda: UnigramTokenizer.train([path], vocab_size=SIZE),
    }
    for name, make in made.items():
        with tempfile.TemporaryDirectory() as folder:
            file, tokenizer = Path(folder) / "tokenizer.json", make()
            if isinstance(tokenizer, Tokenizer):
                write_tokenizer_json(tokenizer, file)
            else:
                tokenizer.save(str(file))
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            other = tokenizers.Tokenizer.from_file(str(file))
            ours, theirs = [], []
            for _ in range(turns):
                tokenizer = load_tokenizer(file)
                started = time.perf_counter()
                tokenizer.encode_file(path)
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                expected = other.encode_batch_fast(parts, add_special_tokens=False)
                theirs.append(time.perf_counter() - started)
            for part, each in zip(parts, expected, strict=True):
                assert tokenizer.encode_block(Block([part])).tolist() == each.ids, name
        ours, theirs = size / median(ours), size / median(theirs)
        print(f"  {name:25} {ours:6.1f} {theirs:6.1f} {ours / theirs:6.1f}", flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--turns", type=int, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--only", choices=["train", "encode"], help="one of the two (default: both)")
    parser.add_argument("--side", choices=TRAINED, help=argparse.SUPPRESS)
    parser.add_argument("--lowercase", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        return train_here(options.side, options.text, options.lowercase)
    for name, bench in {"train": bench_training, "encode": bench_encoding}.items():
        if options.only in (None, name):
            bench(options.text, options.turns)


if __name__ == "__main__":
    main()
