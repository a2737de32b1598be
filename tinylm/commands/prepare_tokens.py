"""Encodes a corpus into token shards, or writes its ids to files.

tinylm prepare tokens my.txt --tokenizer tok.json --out shards
tinylm prepare tokens my.txt --tokenizer tok.json --out shards --shard 0/4
tinylm prepare tokens my.txt --tokenizer tok.json --out ids --format npy
tinylm prepare tokens shards --verify
"""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.commands.corpus_options import add_corpus_options, cache_dir_of, open_from
from tinylm.console import Mode, Parser, check_at_least, plural
from tinylm.errors import ConfigError
from tinylm.locate import command
from tinylm.targets import FileKind, check_target

if TYPE_CHECKING:
    from tinylm.data.corpora import Corpus
    from tinylm.data.shard_builder import Share
    from tinylm.data.shard_index import ShardIndex
    from tinylm.tokenizer import Tokenizer

FORMATS = {  # of files of ids
    "jsonl": FileKind("a file of ids", rb'\{"ids": \['),
    "npy": FileKind("an array of ids", rb"\x93NUMPY"),
    "bin": FileKind("recognizably a file of ids"),
}
TRAINED = ("bpe", "char", "unigram", "word", "wordpiece")  # kinds whose tokens depend on the corpus
MODES = [
    Mode("with --format shards", {"--overwrite"}, lambda options: options.format == "shards"),
    Mode("with --format jsonl, npy or bin", {"--shard", "--verify"}, lambda options: options.format != "shards"),
    Mode("without --out", {"--shard", "--overwrite"}),
]


def tokens_parser() -> Parser:
    """Makes the parser of `prepare tokens`."""
    parser = Parser("prepare tokens", __doc__, MODES)
    add = parser.add_argument
    add("corpus", help="as data.corpus: a file, glob, folder, URL or name; with only --verify, token shards")
    add("--tokenizer", help="as data.tokenizer: the file of a tokenizer, tiktoken:gpt2, or a kind such as bpe:8192")
    add("--out", type=Path, help="folder to write (default: the cache, where training looks for it)")
    add("--shard", metavar="i/n", help="build the i-th of n shares, from 0: run all n, in any order, on any machines")
    add("--verify", action="store_true", help="read all shards, compare their SHA-256, and build damaged ones again")
    add("--format", choices=["shards", *FORMATS], default="shards", help="bin: ids as in memory, uint16 or uint32")
    parser.add_overwrite_option()
    add("--processes", type=int, help="processes that encode (default: one per core)")
    add_corpus_options(parser)
    return parser


def write_tokens(arguments: list[str]) -> None:
    """Writes token shards or files of ids."""
    options = tokens_parser().parse(arguments)
    check_at_least(1, options, "processes")
    if options.tokenizer is None and options.verify:
        return verify(options)
    if options.tokenizer is None:
        raise ConfigError("--tokenizer: missing; give the file of a tokenizer, or a kind such as bpe:8192")
    numbers = _share_of(options.shard)
    spec = os.path.expanduser(options.tokenizer)  # noqa: PTH111 (a kind is not a path)
    if numbers[1] > 1 and spec.partition(":")[0] in TRAINED:
        train = command("tokenizer", "train", options.corpus, "--out", "tok.json")
        raise ConfigError(f"--tokenizer {spec}: with --shard, train it first and give its file, as with: {train}")
    if options.format != "shards":
        if options.out is None:
            raise ConfigError(f"--out: missing; give the folder of the {options.format} files")
        for part in ("train", "val", "test")[: len(options.split)]:
            check_target(options.out / f"{part}.{options.format}", FORMATS[options.format], options.overwrite)
    write(options, spec, numbers)


def write(options: argparse.Namespace, spec: str, numbers: tuple[int, int]) -> None:
    """Encodes the corpus, after the options have been checked."""
    from tinylm.data.shard_builder import Share
    from tinylm.data.shard_folder import write_shards
    from tinylm.data.shard_index import open_parts
    from tinylm.data.tokens import open_cache

    corpus, tokenizer, cache_dir = _open(options, spec)
    if options.format == "shards" and options.out is not None:
        full, share = options.verify or None, Share(*numbers)
        index = write_shards(options.out, corpus, tokenizer, share, full=full, processes=options.processes)
        return _say_shards(options.out, index, share)
    folder, index = open_cache(corpus, tokenizer, cache_dir, options.verify or None, options.processes)
    if options.format == "shards":
        return _say_shards(folder, index, Share())

    from tinylm.data.token_files import write_ids

    for part, tokens in open_parts(folder, index).items():
        assert options.out is not None
        path = options.out / f"{part}.{options.format}"
        write_ids(path, options.format, tokens, tokenizer, tokenizer.end_of_text if corpus.separated else None)
        print(f"{path}: {plural(len(tokens), 'token')}")


def verify(options: argparse.Namespace) -> None:
    """Reads a folder of token shards and compares their SHA-256."""
    from tinylm.data.shard_folder import open_shards

    parts, _ = open_shards(options.corpus, full=True)
    sizes = ", ".join(f"{len(tokens):,} {part}" for part, tokens in parts.items())
    print(f"{options.corpus}: all shards are intact: {sizes} tokens")


def _open(options: argparse.Namespace, spec: str) -> "tuple[Corpus, Tokenizer, Path]":
    """The corpus, the tokenizer and the cache folder."""
    from tinylm.data.tokens import is_tokenizer_file, resolve_tokenizer
    from tinylm.tokenizer import load_tokenizer

    saved, cache_dir = load_tokenizer(spec) if is_tokenizer_file(spec) else None, cache_dir_of(options)
    corpus = open_from(options, options.corpus, takes_bytes="byte" in (spec, saved and saved.kind))
    return corpus, saved or resolve_tokenizer(spec, corpus, cache_dir), cache_dir


def _share_of(text: str | None) -> tuple[int, int]:
    """The number and count of `--shard 1/4`."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--shard must be i/n with i from 0 to n - 1, such as 0/4, got {text}")
    return int(found[1]), int(found[2])


def _say_shards(folder: Path, index: "ShardIndex", share: "Share") -> None:
    """Prints what a folder of shards holds now, and how to train on it."""
    sizes = ", ".join(f"{index.num_tokens(part):,} {part}" for part in index.parts)
    print(f"{folder}: {plural(len(index.shards), 'shard')}, {sizes} tokens")
    if index.complete:
        print(f"to train on them: {command('fit', '-c', 'small', '--data.corpus', folder)}")
    else:
        print(f"share {share.number}/{share.count} is done; others are not yet")
