"""The tokenizer of token ids made by other programs, and the check that the ids belong to its vocabulary."""

from pathlib import Path

import numpy as np

from tinylm.data.pretokenized import llmc, nanogpt
from tinylm.data.pretokenized.base import Pretokenized, Shard
from tinylm.data.pretokenized.scan import BLOCK, scan
from tinylm.data.pretrained import pretrained_tokenizer
from tinylm.data.tokens import is_tokenizer_file
from tinylm.errors import ConfigError, DataError, notice
from tinylm.plugins import Part
from tinylm.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

FILES = ("tokenizer.tinylm.json", "tokenizer.json", "vocab.json")  # in the folder of the shards
ASSUMED = "gpt2"  # by nanoGPT, llm.c and modded-nanogpt
GPT2_SIZES = (50257, 50304)  # the second is rounded up to a multiple of 64


def shard_tokenizer(found: Pretokenized, spec: str | Part, cache_dir: Path) -> Tokenizer:
    """The tokenizer that made the ids.

    It is the file or published tokenizer that `data.tokenizer` names; else the one that the folder records (a
    tokenizer's file, or the characters of meta.pkl); else `byte`, if the option says so; else GPT-2's, if the format
    implies it. A kind to be trained, such as the default `char`, does not name a tokenizer.

    Args:
        found: the shards
        spec: the value of `data.tokenizer`
        cache_dir: the cache of downloaded vocabularies

    Raises:
        ConfigError: if none is known.
    """
    if isinstance(spec, Part):
        raise ConfigError(f"data.tokenizer: {spec} is trained on a text; give the tokenizer that made the token ids")
    name, _, published = spec.partition(":")
    if is_tokenizer_file(spec):
        return load_tokenizer(spec)
    if name == "tiktoken":
        return pretrained_tokenizer(published, cache_dir)
    recorded, size, origin = _recorded(found.folder)
    if recorded is not None:
        instead = "" if spec == "char" else f"; no {spec} is trained"  # char is the default
        notice(f"tokenizer: that of {origin}, {recorded.vocab_size:,} tokens{instead}")
        return recorded
    if spec == ByteTokenizer.kind:
        return ByteTokenizer()
    if found.kind in (nanogpt.KIND, llmc.KIND) and size in (None, *GPT2_SIZES):
        notice(f"tokenizer: none is recorded, GPT-2's is assumed, as in {found.kind}; data.tokenizer names another")
        return pretrained_tokenizer(ASSUMED, cache_dir)
    of_size = "" if size is None else f", of {size:,} tokens by {origin.name}"
    raise ConfigError(
        f"data.tokenizer: {spec} would be trained on a text, but {found.name} holds token ids ({found.kind}); "
        f"name the file of the tokenizer that they were made with{of_size}"
    )


def check_recorded(found: Pretokenized, tokenizer: Tokenizer) -> None:
    """Checks a tokenizer against the one that the folder records; it may have more tokens.

    Raises:
        ConfigError: if the two give different ids.
    """
    recorded, _, origin = _recorded(found.folder)
    if recorded is not None and tokenizer.token_bytes[: recorded.vocab_size] != recorded.token_bytes:
        raise ConfigError(f"data.tokenizer: is not the one that {origin} records for {found.name}; leave it out")


def _recorded(folder: Path) -> tuple[Tokenizer | None, int | None, Path]:
    """The tokenizer in a folder and the size of its vocabulary, None where unknown, and the file that records it."""
    for path in (folder / name for name in FILES):
        if path.is_file():
            tokenizer = load_tokenizer(folder if path.name == "vocab.json" else path)
            return tokenizer, tokenizer.vocab_size, path
    meta = folder / nanogpt.META
    return (*nanogpt.read_meta(meta), meta) if meta.is_file() else (None, None, meta)


def check_ids(found: Pretokenized, vocab_size: int, cache_dir: Path) -> list[str]:
    """Checks that all ids belong to the vocabulary, and returns the SHA-256 of each shard's ids.

    All ids are read once; the results are remembered for unchanged files.

    Raises:
        DataError: for the first id outside the vocabulary, with its position.
    """
    seen = scan(found.shards, cache_dir)
    for shard, each in zip(found.shards, seen, strict=True):
        if each.least < 0 or each.most >= vocab_size:
            position, token = _first_outside(shard, vocab_size)
            problem = f"id {token:,} at position {position:,} is outside the vocabulary of {vocab_size:,} tokens"
            raise DataError(f"data.corpus: {shard.path}: {problem}; name the tokenizer of the ids, data.tokenizer")
    return [each.sha256 for each in seen]


def _first_outside(shard: Shard, vocab_size: int) -> tuple[int, int]:
    """The position of the first id outside a vocabulary, and the id."""
    ids = shard.map()
    for first in range(0, shard.count, BLOCK):
        block = ids[first : first + BLOCK]
        if len(bad := np.flatnonzero((block < 0) | (block >= vocab_size))):
            return first + int(bad[0]), int(block[bad[0]])
    raise DataError(f"data.corpus: {shard.path}: changed while it was read; start again")
