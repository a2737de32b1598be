"""Trains, inspects and exports tokenizers.

tinylm tokenizer train corpus.txt more.txt --kind bpe --vocab-size 4096 --out tok.json
tinylm tokenizer inspect tok.json "some text"
tinylm tokenizer export tok.json --to huggingface --out tokenizer.json
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tinylm.console import Mode, Parser, use_color
from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.files import file_size, read_chunks
from tinylm.progress import ProgressBar, learning
from tinylm.targets import check_target
from tinylm.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    load_tokenizer,
    tokenizer_class,
    write_gpt2,
    write_sentencepiece,
    write_tiktoken,
    write_tokenizer_json,
    write_vocab_txt,
)
from tinylm.tokenizer.base import TOKENIZER_FILE
from tinylm.tokenizer.fast.blocks import file_blocks
from tinylm.tokenizer.learned import VOCAB_SIZE, LearnedTokenizer
from tinylm.tokenizer.normalizers.charsmap_rules import RULES
from tinylm.tokenizer.pieces import show_pieces, statistics
from tinylm.tokenizer.wordpiece import UNKNOWN_PIECE

KINDS = ("bpe", "unigram", "wordpiece", "word", "char", "byte")
LEARNED = {"--vocab-size", "--pattern", "--processes"}
OPTIONS = {
    "bpe": LEARNED | {"--memory-limit"},
    "unigram": LEARNED | {"--memory-limit", "--normalization"},
    "wordpiece": LEARNED | {"--min-frequency"},
    "word": {"--vocab-size", "--min-frequency"},
}
ALL_OPTIONS = set().union(*OPTIONS.values())
MODES = [
    Mode(f"with --kind {kind}", ALL_OPTIONS - OPTIONS.get(kind, set()), lambda options, kind=kind: options.kind == kind)
    for kind in KINDS
]
WRITERS: dict[str, Callable[[Tokenizer, Path, bool], None]] = {
    "huggingface": write_tokenizer_json,  # tokenizer.json
    "gpt2": write_gpt2,  # folder with vocab.json and merges.txt
    "tiktoken": write_tiktoken,  # file of ranks
    "sentencepiece": write_sentencepiece,  # .model
    "bert": write_vocab_txt,  # vocab.txt
    "tinylm": lambda tokenizer, path, overwrite: tokenizer.save(path, overwrite),
}


def train_parser() -> Parser:
    """Makes the parser of `tokenizer train`."""
    parser = Parser("tokenizer train", __doc__, MODES)
    add = parser.add_argument
    add("corpus", nargs="+", type=Path, help="UTF-8 text files, one document each")
    add("--out", type=Path, required=True, help="file to write")
    parser.add_overwrite_option()
    add("--kind", choices=KINDS, default="bpe", help="kind of tokenizer")
    add("--vocab-size", type=int, help="number of tokens, special ones included (default: 4096; word: all words)")
    add("--pattern", help="words: gpt2, gpt4, a regular expression, or, of wordpiece, bert (default: gpt2)")
    add("--min-frequency", type=int, help="leave out rarer words (word, default: 1) or pairs (wordpiece)")
    add("--normalization", choices=["identity", *RULES], help="unigram: SentencePiece's rules (default: identity)")
    special = f"special tokens (default: {END_OF_TEXT}; wordpiece: also {UNKNOWN_PIECE}; word: <pad> <unk> <bos> <eos>)"
    add("--special-tokens", nargs="*", metavar="TOKEN", help=special)
    add("--memory-limit", type=int, help="memory for the distinct words, in MB (default: no limit)")
    add("--processes", type=int, help="processes that count words (default: one per core)")
    return parser


def train(arguments: list[str]) -> None:
    """Trains a tokenizer and writes it."""
    options = train_parser().parse(arguments)
    names = [name.removeprefix("--").replace("-", "_") for name in ALL_OPTIONS]
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.special_tokens is not None:
        settings["special_tokens"] = options.special_tokens
    elif options.kind != "word":
        settings["special_tokens"] = [UNKNOWN_PIECE, END_OF_TEXT] if options.kind == "wordpiece" else [END_OF_TEXT]
    check_target(options.out, TOKENIZER_FILE, options.overwrite)
    started, size = time.monotonic(), sum(map(file_size, options.corpus))
    if not size:
        raise DataError(f"{options.corpus[0]}: is empty; give a file with text")
    kind = tokenizer_class(options.kind)
    pieces = settings.get("vocab_size", VOCAB_SIZE) - 256 - len(settings.get("special_tokens", ()))
    with ProgressBar("counting words", size) as bar, learning(bar, pieces, follow=True) as progress:
        if issubclass(kind, LearnedTokenizer):
            tokenizer = kind.train(options.corpus, **settings, progress=progress)
        else:
            streams = (read_chunks(path, report=bar.update) for path in options.corpus)
            tokenizer = kind.train_from_streams(streams, **settings)
    seconds = time.monotonic() - started
    tokenizer.save(options.out, options.overwrite)
    print(f"{options.out}: {options.kind}, {tokenizer.vocab_size:,} tokens, from {size:,} bytes in {seconds:.1f} s")
    if options.vocab_size is not None and tokenizer.vocab_size < options.vocab_size:
        notice(f"--vocab-size {options.vocab_size}: the text has no more than {tokenizer.vocab_size:,} tokens")
    largest = max(options.corpus, key=file_size)
    sample = next(file_blocks(largest, tokenizer.safe_cut)).texts[0][: 1 << 20]
    print(f"first megabyte of {largest}: {statistics(tokenizer, sample, len(tokenizer.encode_array(sample)))}")


def inspect(arguments: list[str]) -> None:
    """Prints the tokens of a text."""
    parser = Parser("tokenizer inspect", "Shows the tokens of a text, their ids and the bytes per token.")
    parser.add_argument("tokenizer", help="tokenizer file or folder, in any supported format")
    parser.add_argument("text", help="the text, or - to read it from standard input")
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="colour the tokens")
    options = parser.parse(arguments)
    text = sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape") if options.text == "-" else options.text
    if not text:
        raise DataError("text: is empty; give some text")
    print(show_pieces(load_tokenizer(options.tokenizer), text, use_color(options.color)))


def export(arguments: list[str]) -> None:
    """Writes a tokenizer in another format."""
    parser = Parser("tokenizer export", "Writes a tokenizer in the format of another library.")
    parser.add_argument("tokenizer", help="tokenizer file or folder, in any supported format")
    parser.add_argument("--to", choices=[*WRITERS], required=True, help="output format")
    parser.add_argument("--out", type=Path, required=True, help="file to write; a folder for gpt2 and bert")
    parser.add_overwrite_option()
    options = parser.parse(arguments)
    tokenizer = load_tokenizer(options.tokenizer)
    WRITERS[options.to](tokenizer, options.out, options.overwrite)
    print(f"{options.out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, for {options.to}")


def run(arguments: list[str]) -> None:
    """Runs the subcommand that the first argument names (default: train)."""
    commands = {"train": train, "inspect": inspect, "export": export}
    name = arguments[0] if arguments else ""
    if name in commands:
        return commands[name](arguments[1:])
    if (hint := did_you_mean(name, commands)) and not Path(name).exists():
        raise ConfigError(f"{name}: no such subcommand{hint}")
    train(arguments)
