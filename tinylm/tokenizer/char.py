"""Character-level tokenization: one id per Unicode code point."""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.blocks import utf8

UNKNOWN = "<|unk|>"


class CharTokenizer(Tokenizer):
    """One id per character (Unicode code point) of a corpus, then the special tokens.

    Args:
        characters: the vocabulary, each character once
        special_tokens: names; their ids follow the characters'. If `<|unk|>` is among them, unknown characters become
            that token; otherwise they raise an error.
    """

    kind = "char"

    def __init__(self, characters: str, special_tokens: Sequence[str] = ()) -> None:
        if len(set(characters)) != len(characters):
            raise ConfigError("characters must be distinct")
        super().__init__([utf8(character) for character in characters], special_tokens)
        self.characters = characters
        self.unknown = self.special_tokens.get(UNKNOWN)

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], *, special_tokens: Sequence[str] = ()) -> Self:
        """The vocabulary is every character that occurs, in code point order.

        Raises:
            DataError: if the texts are empty.
        """
        seen = np.zeros(sys.maxunicode + 1, dtype=bool)
        for text in chain.from_iterable(streams):
            seen[_code_points(text)] = True
        if not seen.any():
            raise DataError("the corpus is empty: the vocabulary needs at least one character")
        return cls("".join(map(chr, np.flatnonzero(seen))), special_tokens)

    @cached_property
    def _ids(self) -> np.ndarray:
        """Code point -> id, or -1. One lookup encodes a whole text."""
        points = np.array([ord(character) for character in self.characters])
        table = np.full(points.max(initial=0) + 2, -1, dtype=np.int64)  # the last entry serves all larger code points
        table[points] = np.arange(len(points))
        return table

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """One id per character, int64 (n,).

        Raises:
            DataError: for an unknown character without `<|unk|>`, with its position; for a lone surrogate.
        """
        points = _code_points(text)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        unknown = np.flatnonzero(ids < 0)
        if not len(unknown):
            return ids
        surrogates = unknown[(points[unknown] & 0xFFFFF800) == 0xD800]
        if self.unknown is None or len(surrogates):
            position = int(unknown[0] if self.unknown is None else surrogates[0])
            raise DataError(
                f"character {text[position]!a} (U+{ord(text[position]):04X}) at position {start + position} is not "
                f"in the vocabulary of {len(self.characters)} characters; leave it out, or train with the tokenizer "
                "bpe or byte, which encode any text"
            )
        ids[unknown] = self.unknown
        return ids

    def _sizes(self, text: str, ids: np.ndarray) -> np.ndarray:
        return np.array([len(utf8(character)) for character in text], dtype=np.int64)

    def options(self) -> dict[str, Any]:
        """Vocabulary and special tokens."""
        return {"characters": self.characters, "special_tokens": list(self.special_tokens)}


def _code_points(text: str) -> np.ndarray:
    """The code point of each character, uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
