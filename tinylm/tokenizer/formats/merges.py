"""Byte pair encoding as other tools write it down: tokens by name, merges by name or by rank.

GPT-2's files, and tokenizer.json after them, write the bytes of a token as printable characters:

    " the\\n"  is called  "ĠtheĊ"

A list of merges by such names is what BPETokenizer has by number. tiktoken's files have no merges: it joins any two
neighbours whose joint bytes are a token, those of the lowest rank first. When that comes to the same is said in
`NamedMerges`. The files themselves are formats.py's and huggingface.py's.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError
from tinylm.tokenizer.bpe import BYTE_IDS, PRINTABLE, BPETokenizer
from tinylm.tokenizer.fast.merging import Pair, merge_word

# The characters of the bytes in the order of their ids. Printable bytes stand for themselves.
ALPHABET = "".join(map(chr, PRINTABLE)) + "".join(chr(256 + number) for number in range(256 - len(PRINTABLE)))


def printable(piece: bytes) -> str:
    """The name of a token: its bytes as printable characters."""
    return piece.translate(BYTE_IDS).decode("latin-1").translate(ALPHABET)


class NamedMerges:
    """Merges as they are read, one after the other, by the names of tokens.

    Much here rests on one fact. Look at a stretch of a word that no merge has crossed so far: it went through the same
    steps as if it were a word for itself. So if its bytes alone become one token by the first k merges, they are that
    token before any later merge has its turn, in every word.

    Attributes:
        names: of bytes and merges, in the order of BPETokenizer
        merges: pairs of their places there
    """

    def __init__(self) -> None:
        self.names = list(ALPHABET)
        self.merges: list[Pair] = []
        self._index = {name: token for token, name in enumerate(self.names)}
        self._merged: dict[Pair, Pair] = {}  # as BPETokenizer's
        self._waiting: defaultdict[str, list[str]] = defaultdict(list)  # what is no token yet -> what is made of it

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def add(self, left: str, right: str) -> None:
        """The next merge.

        Files made from tiktoken's ranks list every pair that a token can be cut into, also pairs of tokens that only
        later merges make. Such a merge never has its turn if the whole is there before its parts, by the fact above,
        and is left out; whether it is will be known when the parts come.

        Raises:
            ConfigError: if it is not.
        """
        whole = left + right
        for part in (left, right):
            if part not in self._index:
                self._waiting[part].append(whole)
                return
        for name in self._waiting.pop(whole, ()):
            if name not in self._index or not self.is_whole(name):
                raise ConfigError(f"merges: {name!r} is made of {whole!r} before there is such a token; reorder them")
        pair = self._index[left], self._index[right]
        if whole not in self._index:
            self._index[whole] = len(self.names)
            self.names.append(whole)
        self._merged[pair] = len(self.merges), self._index[whole]
        self.merges.append(pair)

    def finish(self) -> None:
        """Ends the list.

        Raises:
            ConfigError: if a merge is of a token that no other has made.
        """
        for name, wholes in self._waiting.items():
            raise ConfigError(f"merges: {wholes[0]!r} is made of {name!r}, which is no token; is the file complete?")

    def add_by_rank(self, name: str) -> None:
        """The merge that makes the token of the next rank: of the two that tiktoken's rule makes of its bytes till now.

        If they are two, no word ever has other pairs with these bytes when the rank's turn comes, by the fact above;
        so the rule and the merges do the same.

        Raises:
            ConfigError: if they are more than two.
        """
        parts = [self.names[token] for token in self._encode(name)]
        if len(parts) != 2:
            raise ConfigError(f"{name!r} must be made of two tokens of lower ranks, got {' '.join(parts)}")
        self.add(*parts)

    def is_whole(self, name: str) -> bool:
        """Whether the bytes of a token become this token."""
        return self._encode(name) == [self._index[name]]

    def _encode(self, name: str) -> list[int]:
        return merge_word([self._index[character] for character in name], self._merged)


def names_and_ids(tokenizer: BPETokenizer) -> tuple[list[str], Sequence[int]]:
    """The names of bytes and merges in the order of BPETokenizer, and the ids of these and of the special tokens."""
    ids = tokenizer.ids or range(tokenizer.vocab_size)
    ordinary = ids[: len(ids) - len(tokenizer.special_tokens)]
    return [printable(tokenizer.token_bytes[token]) for token in ordinary], ids


def vocabulary(names: Sequence[str], special_tokens: Sequence[str], ids: Sequence[int]) -> dict[str, int]:
    """Name -> id of all tokens.

    Raises:
        ConfigError: if a special token has an ordinary one's name.
    """
    for name in sorted(set(special_tokens) & set(names)):
        raise ConfigError(f"special_tokens: {name!r} is an ordinary token's name in this format; give it another")
    return dict(zip([*names, *special_tokens], ids, strict=True))


def with_ids(table: NamedMerges, vocab: Mapping[str, int], special: Sequence[str], pattern: str) -> BPETokenizer:
    """The tokenizer of these merges, with the ids of a vocabulary.

    Raises:
        ConfigError: if the vocabulary lacks a token or has an id twice.
    """
    for name in table.names:
        if name not in vocab:
            raise ConfigError(f"vocab: lacks {'the byte' if len(name) == 1 else 'the merged token'} {name!r}")
    return BPETokenizer(table.merges, pattern, special, [vocab[name] for name in [*table.names, *special]])


@contextlib.contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Turns what is wrong with the content of a file into a DataError that names it, and `what` it should be."""
    try:
        yield
    except TinyLMError as error:
        raise DataError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is not {what} ({type(error).__name__}: {error})") from error


def require(path: str | Path) -> Path:
    """The path of a file that must be there.

    Raises:
        MissingInputError: if it is not.
    """
    if not Path(path).is_file():
        raise MissingInputError(f"{path}: no such tokenizer file")
    return Path(path)
