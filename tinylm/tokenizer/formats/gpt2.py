"""Other tools' tokenizer files: Hugging Face's tokenizer.json (in huggingface.py), GPT-2's two files, tiktoken's ranks.

What is read or written has the same ids in both programs, for any text; what would not is refused, and the reason is
named. Both must know the same Unicode: a letter that is newer than one of them is a letter to the other only.

Left out is what the formats have no place for: the pattern (GPT-2, tiktoken) and the special tokens (tiktoken).
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.files import read_json, write_json, write_text
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.bpe import BPETokenizer, check_ids
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, is_tokenizer_json
from tinylm.tokenizer.formats.merges import (
    ALPHABET,
    NamedMerges,
    names_and_ids,
    printable,
    reading,
    require,
    vocabulary,
    with_ids,
)


def read_any(path: str | Path) -> Tokenizer:
    """What `load_tokenizer` promises."""
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".tiktoken":
        notice(f"{path} does not say how it cuts words: taking gpt2's way; read_tiktoken takes another pattern")
        return read_tiktoken(path)
    values = read_json(require(path))
    if is_tokenizer_json(values):
        return from_tokenizer_json(values, source=str(path))
    return Tokenizer.from_dict(values, source=str(path))


def read_folder(folder: str | Path) -> Tokenizer:
    """Reads the tokenizer in a folder: tokenizer.tinylm.json, else tokenizer.json, else vocab.json with merges.txt.

    Raises:
        MissingInputError: if there is none.
        DataError: as the readers.
    """
    folder = Path(folder)
    for name in ("tokenizer.tinylm.json", "tokenizer.json"):
        if (folder / name).is_file():
            return read_any(folder / name)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return read_gpt2(folder / "vocab.json", folder / "merges.txt")
    raise MissingInputError(f"{folder}: has no tokenizer.tinylm.json, no tokenizer.json, no vocab.json with merges.txt")


# --- GPT-2: vocab.json and merges.txt


def read_gpt2(vocab_path: str | Path, merges_path: str | Path) -> BPETokenizer:
    """Reads GPT-2's two files: the ids of all tokens, and the merges. The pattern is GPT-2's.

    What is in the vocabulary and is neither a byte nor merged, such as `<|endoftext|>`, becomes a special token.

    Raises:
        MissingInputError: if one of them is not there.
        DataError: if they are damaged, do not belong together, or are something else.
    """
    vocab, merges_path = read_json(require(vocab_path)), require(merges_path)
    with reading(merges_path, "a list of merges"):
        table = _read_merges(merges_path)
    with reading(vocab_path, "a vocabulary"):
        special = sorted((name for name in vocab if name not in table), key=vocab.__getitem__)
        return with_ids(table, vocab, special, "gpt2")


def _read_merges(path: Path) -> NamedMerges:
    table = NamedMerges()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split(" ")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise ConfigError(f"line {number}: {line[:40]!a} is not two tokens with a space between them")
        table.add(*parts)
    table.finish()
    return table


def write_gpt2(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes GPT-2's two files, vocab.json and merges.txt. Special tokens are in the vocabulary, not marked as such.

    Raises:
        ConfigError: for another tokenizer than BPE with the pattern gpt2; for a special token named as an ordinary one.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise ConfigError(f"tokenizer: GPT-2's files hold bpe only, not kind {tokenizer.kind}; write tokenizer.json")
    if tokenizer.pattern != "gpt2":
        raise ConfigError(f"pattern: GPT-2's files mean gpt2, got {tokenizer.pattern!r}; write tokenizer.json")
    names, ids = names_and_ids(tokenizer)
    vocab = vocabulary(names, list(tokenizer.special_tokens), ids)
    merges = [f"{names[left]} {names[right]}\n" for left, right in tokenizer.merges]
    write_json(Path(folder) / "vocab.json", vocab)
    write_text(Path(folder) / "merges.txt", "".join(["#version: 0.2\n", *merges]))


# --- tiktoken: lines of base64 and rank


def read_tiktoken(
    path: str | Path, pattern: str = "gpt2", special_tokens: Mapping[str, int] | Sequence[str] = ()
) -> BPETokenizer:
    """Reads tiktoken's ranks, which are ids and the order of merging in one.

    Args:
        path: the file
        pattern: as for BPETokenizer; the file does not tell
        special_tokens: name -> id, or names whose ids follow the ranks; the file does not have them

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, lacks a byte, or has a token that is not made of two others.
        ConfigError: if the id of a special token is taken, or the pattern is none.
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
    """Name -> rank, the lowest first."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
    pairs = [(printable(base64.b64decode(piece, validate=True)), int(rank)) for piece, rank in lines]
    check_ids([rank for _, rank in pairs], len(set(dict(pairs))))
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def write_tiktoken(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes the ranks of bytes and merges, for `tiktoken.load.load_tiktoken_bpe`.

    What has no place in the file, `tiktoken.Encoding` takes beside it: `PATTERNS[tokenizer.pattern]` (or the pattern of
    one's own) and `tokenizer.special_tokens`, whose ids the ranks leave out.

    Raises:
        ConfigError: for another tokenizer than BPE; if tiktoken's rule would merge otherwise, with the token.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise ConfigError(f"tokenizer: tiktoken's ranks hold bpe only, not kind {tokenizer.kind}; write tokenizer.json")
    names, ids = names_and_ids(tokenizer)
    _check_ranks(tokenizer.merges, names, ids)
    lines = [f"{base64.b64encode(tokenizer.token_bytes[i]).decode('ascii')} {i}\n" for i in sorted(ids[: len(names)])]
    write_text(path, "".join(lines))


def _check_ranks(merges: Sequence[tuple[int, int]], names: Sequence[str], ids: Sequence[int]) -> None:
    """Checks that ranks come to the same as the merges: that tiktoken's rule makes each token of two parts for which
    there is a merge, after the token before it and before the next one. Other merges of the same bytes come too late.

    Raises:
        ConfigError: if not.
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
            raise ConfigError(f"ids: {names[token]!r} has {ids[token]}, less than an earlier merge; ranks must grow")
        table.add_by_rank(names[token])
        if table.merges[-1] not in makers[token - 256]:
            left, right = (names[part] for part in table.merges[-1])
            raise ConfigError(f"merges: tiktoken would make {names[token]!r} of {left!r} and {right!r}, unlike these")
