"""The tokenizer of token ids that others have made, and the check that the ids are of its vocabulary."""

from pathlib import Path

from tinylm.data.pretokenized import llmc, nanogpt
from tinylm.data.pretokenized.base import Pretokenized
from tinylm.data.pretokenized.scan import scan
from tinylm.data.pretrained import pretrained_tokenizer
from tinylm.data.tokens import is_tokenizer_file
from tinylm.errors import ConfigError, DataError, notice
from tinylm.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

FILES = ("tokenizer.tinylm.json", "tokenizer.json", "vocab.json")  # in the folder of the shards
ASSUMED = "gpt2"  # by nanoGPT, llm.c and modded-nanogpt
GPT2_SIZES = (50257, 50304)  # the second is rounded up to a multiple of 64


def shard_tokenizer(found: Pretokenized, spec: str, cache_dir: Path) -> Tokenizer:
    """The tokenizer with which the ids were made.

    It is the one that the folder records (a tokenizer's file, or the characters of meta.pkl), else the one that
    `data.tokenizer` names, else GPT-2's, if the format means that. A kind to be trained, such as the default `char`,
    names none.

    Args:
        found: the shards
        spec: the value of `data.tokenizer`
        cache_dir: the cache of downloaded vocabularies

    Raises:
        ConfigError: if `data.tokenizer` names another than the folder records, or none is known.
    """
    named = _named(spec, cache_dir)
    recorded, size, origin = _recorded(found.folder)
    if recorded is not None:
        if named is not None and named.token_bytes[: recorded.vocab_size] != recorded.token_bytes:
            raise ConfigError(f"data.tokenizer: {spec} is not the one that {origin} records; leave it out")
        return named or recorded
    if named is not None:
        return named
    if spec == ByteTokenizer.kind:
        return ByteTokenizer()
    if found.kind in (nanogpt.KIND, llmc.KIND) and size in (None, *GPT2_SIZES):
        notice(f"{found.name}: no tokenizer is recorded: GPT-2's is assumed, as in {found.kind}; data.tokenizer names another")
        return pretrained_tokenizer(ASSUMED, cache_dir)
    of_size = "" if size is None else f" of {size:,} tokens ({origin})"
    raise ConfigError(
        f"data.tokenizer: {spec} would be trained on a text, but {found.name} holds token ids ({found.kind}); "
        f"name the file of the tokenizer{of_size} that they were made with"
    )


def _named(spec: str, cache_dir: Path) -> Tokenizer | None:
    """The tokenizer of a file, or a published one; None for a kind to be trained."""
    if is_tokenizer_file(spec):
        return load_tokenizer(spec)
    name, _, published = spec.partition(":")
    return pretrained_tokenizer(published, cache_dir) if name == "tiktoken" else None


def _recorded(folder: Path) -> tuple[Tokenizer | None, int | None, Path]:
    """The tokenizer in a folder and the size of its vocabulary, None where unknown, and the file that says so."""
    for path in (folder / name for name in FILES):
        if path.is_file():
            tokenizer = load_tokenizer(folder if path.name == "vocab.json" else path)
            return tokenizer, tokenizer.vocab_size, path
    meta = folder / nanogpt.META
    return (*nanogpt.read_meta(meta), meta) if meta.is_file() else (None, None, meta)


def check_ids(found: Pretokenized, tokenizer: Tokenizer, cache_dir: Path) -> str:
    """Checks that all ids are of the vocabulary, and returns the SHA-256 of all files.

    All ids are read once; what was found is remembered for unchanged files.

    Raises:
        DataError: for the first id outside the vocabulary, with its position.
    """
    digests = []
    for shard, seen in zip(found.shards, scan(found.shards, cache_dir), strict=True):
        digests.append(seen.sha256)
        if shard.count and not (seen.least >= 0 and seen.most < tokenizer.vocab_size):
            ids = shard.map()
            position, token = next(
                (first + int(bad[0]), int(ids[first + int(bad[0])]))
                for first in range(0, shard.count, 1 << 20)
                if len(bad := outside(ids[first : first + (1 << 20)], tokenizer.vocab_size))
            )
            problem = f"id {token:,} at position {position:,} is outside the vocabulary of {tokenizer.vocab_size:,}"
            raise DataError(f"data.corpus: {shard.path}: {problem}; name the tokenizer of the ids by data.tokenizer")
    return digests
