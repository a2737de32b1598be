"""Options of commands that read a corpus: those of `data.*` that determine its documents."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser
from tinylm.files import default_cache_dir

if TYPE_CHECKING:
    from tinylm.data.corpora import Corpus


def add_corpus_options(parser: Parser) -> None:
    """Adds the options, to be passed to `open_from`."""
    add = parser.add_argument
    add(
        "--split",
        type=float,
        nargs="+",
        default=[0.9, 0.1],
        metavar="FRACTION",
        help="as data.split (default: 0.9 0.1)",
    )
    add("--seed", type=int, default=0, help="seed of generated texts")
    add("--errors", choices=["strict", "replace"], default="strict", help="invalid UTF-8: an error, or replaced")
    add("--field", default="text", help="field or column of a record that is the document")
    add("--separator", help="text between the documents of a file (default: <|endoftext|> if a file has it)")
    add("--include", nargs="+", default=[], metavar="PATTERN", help="names of the files to take from a folder, as *.md")
    add("--exclude", nargs="+", default=[], metavar="PATTERN", help="names of the files to leave out")
    add("--deduplicate", action="store_true", help="keep only the first of equal documents")
    add("--cache-dir", type=Path, help="cache of downloads and tokens (default: $TINYLM_CACHE or ~/.cache/tinylm)")


def cache_dir_of(options: argparse.Namespace) -> Path:
    """The cache folder."""
    return (options.cache_dir or default_cache_dir()).expanduser()


def open_from(options: argparse.Namespace, corpus: str, takes_bytes: bool = False) -> "Corpus":
    """Opens a corpus; `takes_bytes` says whether the tokenizer accepts any bytes, as the byte tokenizer does."""
    from tinylm.data.corpora import Reading, check_split, open_corpus

    patterns = tuple(options.include), tuple(options.exclude)
    separator = "--" if options.separator == [] else options.separator  # argparse before 3.13 drops the value `--`
    reading = Reading(options.field, separator, *patterns, deduplicate=options.deduplicate)
    errors = "surrogateescape" if takes_bytes and options.errors == "strict" else options.errors
    split, cache_dir = check_split(options.split), cache_dir_of(options)
    return open_corpus(corpus, split=split, cache_dir=cache_dir, seed=options.seed, errors=errors, reading=reading)
