"""Writes the token ids of a corpus for nanoGPT, llm.c (and modded-nanogpt) or Megatron.

tinylm prepare shards my.txt --to nanogpt --tokenizer char --out my-chars
tinylm prepare shards 'notes/*.md' --to llmc --tokenizer tiktoken:gpt2 --out notes-gpt2
tinylm prepare shards my-chars --to megatron --out my-megatron
"""

import sys
from pathlib import Path

from tinylm.console import Parser, check_at_least
from tinylm.errors import ConfigError, did_you_mean
from tinylm.files import default_cache_dir
from tinylm.locate import command
from tinylm.stages import Stages

FORMATS = ("nanogpt", "llmc", "megatron")
SHARD_TOKENS = 100_000_000


def write_shards(arguments: list[str]) -> None:
    """Encodes a corpus, unless it holds token ids already, and writes its shards."""
    parser = Parser("prepare shards", __doc__)
    add = parser.add_argument
    add("corpus", help="what data.corpus takes: files, a glob, stories, ..., or token ids of another format")
    add("--to", required=True, help=f"one of {', '.join(FORMATS)}")
    add("--tokenizer", help="what data.tokenizer takes: a file or folder, tiktoken:gpt2, byte, char, bpe:4096, ...")
    add("--out", type=Path, required=True, help="the folder to write")
    parser.add_overwrite_option()
    add("--shard-tokens", type=int, help=f"llmc: most ids in a file (default: {SHARD_TOKENS})")
    add("--split", default="0.9,0.1", help="fractions of train and val, or of train, val and test")
    add("--seed", type=int, default=0, help="seed of generated stories")
    add("--errors", default="strict", help="invalid UTF-8: strict (an error) or replace")
    add("--cache-dir", type=Path, help="cache of encoded texts (default: $TINYLM_CACHE or ~/.cache/tinylm)")
    options = parser.parse(arguments)
    if options.to not in FORMATS:
        hint = did_you_mean(options.to, FORMATS, {"llm.c": "llmc", "modded-nanogpt": "llmc"})
        raise ConfigError(f"--to {options.to}: no such format{hint or ', known are ' + ', '.join(FORMATS)}")
    if options.errors not in ("strict", "replace"):
        raise ConfigError(f"--errors must be strict or replace, got {options.errors!r}")
    if options.shard_tokens is not None and options.to != "llmc":
        raise ConfigError(f"--shard-tokens: {options.to} has one file for each part; leave it out")
    check_at_least(1, options, "shard_tokens")

    from tqdm import tqdm

    from tinylm.data.pretokenized.write import check_shard_target, check_vocabulary, write_pretokenized

    check_shard_target(options.out, options.overwrite)
    content = _content(options)
    check_vocabulary(options.to, content.tokenizer.vocab_size)
    tokens, size = content.tokens, options.shard_tokens or SHARD_TOKENS
    total, hidden = sum(map(len, tokens.values())), not sys.stderr.isatty()
    with tqdm(total=total, desc="writing", unit=" ids", unit_scale=True, delay=2, leave=False, disable=hidden) as bar:
        counts = write_pretokenized(
            options.to, tokens, content.tokenizer, options.out, shard_tokens=size, overwrite=options.overwrite,
            progress=bar.update,
        )  # fmt: skip
    for name, count in counts.items():
        print(f"{options.out / name}: {count:,} token ids")
    print(f"to train on them: {command('fit', '-c', 'small', '--data.corpus', options.out)}")


def _content(options):
    """The corpus as `tinylm fit` would read it."""
    from tinylm.data.content import Settings
    from tinylm.data.corpora import check_split
    from tinylm.data.pretokenized import find_pretokenized
    from tinylm.data.shard_content import ShardContent
    from tinylm.data.text_content import TextContent

    try:
        split = check_split(float(each) for each in options.split.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--split must be one to three fractions that sum to 1, as 0.9,0.1; got {options.split}"
        ) from error
    found = find_pretokenized(options.corpus)
    if found is None and options.tokenizer is None:
        raise ConfigError("--tokenizer: missing; name a file or folder, tiktoken:gpt2, byte, char, bpe:4096, ...")
    if found is not None and options.errors != "strict":
        raise ConfigError(f"--errors: is for texts, and {options.corpus} holds token ids; leave it out")
    takes_bytes = options.tokenizer == "byte" and options.errors == "strict"
    settings = Settings(
        tokenizer=options.tokenizer or "char",
        context=1,
        batch_size=Stages(1),
        split=split,
        seed=0,
        text_seed=options.seed,
        errors="surrogateescape" if takes_bytes else options.errors,
        train_tokens=None,
        cache_dir=options.cache_dir or default_cache_dir(),
    )
    return TextContent(options.corpus, settings) if found is None else ShardContent(found, settings)
