"""tiktoken's ranks: a file with one token per line, its bytes in base64 and its rank.

A file is read or written only if both programs give the same ids for every text. It records neither the pattern nor the
special tokens.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinylm.errors import ConfigError
from tinylm.files import write_text
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.alphabet import ALPHABET, printable
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.bpe import BPETokenizer, check_ids
from tinylm.tokenizer.formats.merges import NamedMerges, reading, require


def read_tiktoken(
    path: str | Path, pattern: str = "gpt2", special_tokens: Mapping[str, int] | Sequence[str] = ()
) -> BPETokenizer:
    """Reads tiktoken's ranks, which are both the ids and the order of merging.

    Args:
        path: the file
        pattern: the pre-tokenizer's pattern, as in BPETokenizer
        special_tokens: name -> id, or names whose ids follow the ranks

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, lacks a byte, or has a token that does not merge two others.
        ConfigError: if the id of a special token is taken, or the pattern is invalid.
    """
    path, table = require(path), NamedMerges()
    with reading(path, "a file of ranks"):
        ranks = _read_ranks(path)
        for name in ALPHABET:
            if name not in ranks:
                raise ConfigError(f"lacks the byte {name!r}; is the file complete?")
        for name in ranks:
            if len(name) != 1:
                table.add_by_rank(name)
    if not isinstance(special_tokens, Mapping):
        special_tokens = {name: max(ranks.values()) + i for i, name in enumerate(special_tokens, start=1)}
    ids = [*(ranks[name] for name in table.names), *special_tokens.values()]
    return BPETokenizer(table.merges, pattern, list(special_tokens), ids)


def _read_ranks(path: Path) -> dict[str, int]:
    """Name -> rank, in order of rank."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
    pairs = [(printable(base64.b64decode(piece, validate=True)), int(rank)) for piece, rank in lines]
    check_ids([rank for _, rank in pairs], len(set(dict(pairs))))
    return dict(sorted(pairs, key=lambda pair: pair[1]))


RANKS = FileKind("a file of ranks", rb"[A-Za-z0-9+/]+=* \d+\n")


def write_tiktoken(tokenizer: Tokenizer, path: str | Path, overwrite: bool = False) -> None:
    """Writes the ranks of bytes and merged tokens, for `tiktoken.load.load_tiktoken_bpe`.

    `tiktoken.Encoding` takes the rest as arguments: `PATTERNS[tokenizer.pattern]` (or the custom pattern itself) and
    `tokenizer.special_tokens`.

    Raises:
        CannotCreateError: if the file exists and `overwrite` is false, or it is not such a file.
        ConfigError: if the tokenizer is not BPE, or tiktoken would merge a token differently.
    """
    check_target(path, RANKS, overwrite)
    refuse_own_class(tokenizer, ".tiktoken")
    if not isinstance(tokenizer, BPETokenizer):
        raise ConfigError(f"tokenizer: tiktoken's ranks need kind bpe, got {tokenizer.kind}; write tokenizer.json")
    if tokenizer.missing:
        raise ConfigError("tokenizer: tiktoken's ranks need all 256 bytes, which this one lacks; write tokenizer.json")
    names, ids = tokenizer.names_and_ids()
    _check_ranks(tokenizer.merges, names, ids)
    lines = [f"{base64.b64encode(tokenizer.token_bytes[i]).decode('ascii')} {i}\n" for i in sorted(ids[: len(names)])]
    write_text(path, "".join(lines))


def _check_ranks(merges: Sequence[tuple[int, int]], names: Sequence[str], ids: Sequence[int]) -> None:
    """Checks that ranks give the same ids as the merges.

    tiktoken's rule must make each token from a pair whose merge comes after the previous token and before the next one.
    Other merges of the same bytes never apply.

    Raises:
        ConfigError: if ranks and merges differ.
    """
    makers: list[set[tuple[int, int]]] = []
    index = {name: token for token, name in enumerate(names)}
    for left, right in merges:
        token = index[names[left] + names[right]]
        if token == 256 + len(makers):
            makers.append(set())
        if token == 255 + len(makers):
            makers[-1].add((left, right))
    table = NamedMerges()
    for token in range(256, len(names)):
        if token > 256 and ids[token] < ids[token - 1]:
            raise ConfigError(
                f"ids must increase in merge order, got {ids[token]} for {names[token]!r} after {ids[token - 1]}"
            )
        table.add_by_rank(names[token])
        if table.merges[-1] not in makers[token - 256]:
            left, right = (names[part] for part in table.merges[-1])
            raise ConfigError(
                f"merges: tiktoken would make {names[token]!r} of {left!r} and {right!r}, these merges would not"
            )
