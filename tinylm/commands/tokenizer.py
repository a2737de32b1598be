"""Trains, shows and converts tokenizers.

tinylm tokenizer train corpus.txt more.txt --kind bpe --vocab-size 4096 --out tok.json
tinylm tokenizer inspect tok.json "some text"
tinylm tokenizer export tok.json --to huggingface --out tokenizer.json
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm

from tinylm.console import Parser, use_color
from tinylm.errors import ConfigError, DataError
from tinylm.files import file_size
from tinylm.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    load_tokenizer,
    tokenizer_class,
    write_gpt2,
    write_tiktoken,
    write_tokenizer_json,
)
from tinylm.tokenizer.fast.blocks import file_blocks
from tinylm.tokenizer.pieces import show_pieces, statistics

KINDS = ("bpe", "word", "char", "byte")
OPTIONS = {
    "bpe": {"vocab_size", "pattern", "memory_limit", "processes"},
    "word": {"vocab_size", "min_frequency"},
}
ALL_OPTIONS = set().union(*OPTIONS.values())
WRITERS: dict[str, Callable[[Tokenizer, Path], None]] = {
    "huggingface": write_tokenizer_json,  # a tokenizer.json
    "gpt2": write_gpt2,  # a folder with vocab.json and merges.txt
    "tiktoken": write_tiktoken,  # a file of ranks
    "tinylm": lambda tokenizer, path: tokenizer.save(path),
}


def train_parser() -> Parser:
    """The options of training."""
    parser = Parser("tokenizer train", __doc__)
    parser.add_argument("corpus", nargs="+", type=Path, help="UTF-8 text files; each is a document")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--kind", choices=KINDS, default="bpe", help="what a token is (%(default)s)")
    parser.add_argument("--vocab-size", type=int, help="of bpe (4096) and word (all words), special tokens included")
    parser.add_argument("--pattern", help="of bpe: gpt2, gpt4, or a regular expression of one word (gpt2)")
    parser.add_argument("--min-frequency", type=int, help="of word: how often a word must occur (1)")
    parser.add_argument("--special-tokens", nargs="*", help=f"names ({END_OF_TEXT}; of word <pad> <unk> <bos> <eos>)")
    parser.add_argument("--memory-limit", type=int, help="of bpe: megabytes for the words (no limit)")
    parser.add_argument("--processes", type=int, help="of bpe: how many work (one for each core)")
    return parser


def train(arguments: list[str]) -> None:
    """Trains a tokenizer and writes it."""
    options = train_parser().parse(arguments)
    wanted = {name: value for name, value in vars(options).items() if name in ALL_OPTIONS and value is not None}
    for name in wanted.keys() - OPTIONS.get(options.kind, set()):
        raise ConfigError(f"--{name.replace('_', '-')}: kind {options.kind} has no such option; leave it out")
    if options.special_tokens is not None:
        wanted["special_tokens"] = options.special_tokens
    elif options.kind != "word":
        wanted["special_tokens"] = [END_OF_TEXT]
    started, size = time.monotonic(), sum(map(file_size, options.corpus))
    if not size:
        raise DataError(f"{options.corpus[0]}: is empty; give a text")
    with progress_bars(size) if options.kind == "bpe" else nullcontext({}) as bars:
        tokenizer = tokenizer_class(options.kind).train(options.corpus, **wanted, **bars)
    seconds = time.monotonic() - started
    tokenizer.save(options.out)
    print(f"{options.out}: {options.kind}, {tokenizer.vocab_size:,} tokens, from {size:,} bytes in {seconds:.1f} s")
    largest = max(options.corpus, key=file_size)
    sample = next(file_blocks(largest, tokenizer.safe_cut)).texts[0][: 1 << 20]
    print(f"the first megabyte of {largest}: {statistics(tokenizer, sample, len(tokenizer.encode_array(sample)))}")


@contextmanager
def progress_bars(size: int) -> Iterator[dict]:
    """Bars for a terminal: one for the bytes that are counted, one for the merges; as an option of training."""
    quiet = not sys.stderr.isatty()
    with (
        tqdm(desc="counting words", total=size, unit="B", unit_scale=True, disable=quiet, delay=1) as counting,
        tqdm(desc="merging", unit=" merges", disable=quiet, delay=1) as merging,
    ):
        bars = {"counting": counting, "merging": merging}
        yield {"progress": lambda stage, done: bars[stage].update(done - bars[stage].n)}


def inspect(arguments: list[str]) -> None:
    """Prints the pieces of a text."""
    parser = Parser("tokenizer inspect", "Shows how a tokenizer cuts a text.")
    parser.add_argument("tokenizer", help="a tokenizer's file or folder, of any format")
    parser.add_argument("text", help="the text, or - to read it from standard input")
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="(%(default)s)")
    options = parser.parse(arguments)
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if options.text == "-" else options.text
    if not text:
        raise DataError("text: is empty; give some")
    print(show_pieces(load_tokenizer(options.tokenizer), text, use_color(options.color)))


def export(arguments: list[str]) -> None:
    """Writes a tokenizer in another format."""
    parser = Parser("tokenizer export", "Writes a tokenizer in another tool's format.")
    parser.add_argument("tokenizer", help="a tokenizer's file or folder, of any format")
    parser.add_argument("--to", choices=[*WRITERS], required=True, help="the format")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; of gpt2 a folder")
    options = parser.parse(arguments)
    tokenizer = load_tokenizer(options.tokenizer)
    WRITERS[options.to](tokenizer, options.out)
    print(f"{options.out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, for {options.to}")


def run(arguments: list[str]) -> None:
    """Does what the first word says; without one of these it trains."""
    commands = {"train": train, "inspect": inspect, "export": export}
    if arguments and arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
    else:
        train(arguments)
