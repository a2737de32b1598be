"""Word-level tokenization, as in the first neural language models: one id per known word.

Text is split into words, punctuation and white space (the pattern `words` in pretokenize.py). A single space before a
word belongs to it, so " cat" and "cat" are two entries. Known words decode exactly; unknown words become `<unk>`.

Not supported: lowercasing, stemming or any other normalization.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.base import END_OF_TEXT, Tokenizer
from tinylm.tokenizer.fast.blocks import blocks, utf8
from tinylm.tokenizer.fast.pretokenize import WordSplitter

UNKNOWN_WORD = "<unk>"
END = "<eos>"
SPECIAL_TOKENS = ("<pad>", UNKNOWN_WORD, "<bos>", END)


class WordTokenizer(Tokenizer):
    """The words of a corpus, then the special tokens.

    Args:
        words: the vocabulary, each word once, as split by the pattern `words`: "cat", " cat", ",", " "
        special_tokens: names; their ids follow the words'. If `<unk>` is among them, unknown words become that token;
            otherwise they raise an error.

    Raises:
        ConfigError: if a word is repeated, or the pattern splits it.
        DataError: if a word has a lone surrogate.
    """

    kind = "word"
    has_size = True
    ends = (END_OF_TEXT, END)

    def __init__(self, words: Sequence[str], special_tokens: Sequence[str] = SPECIAL_TOKENS) -> None:
        super().__init__([utf8(word) for word in words], special_tokens)
        self.words = list(words)
        self.unknown = self.special_tokens.get(UNKNOWN_WORD)
        self._ids = {word: token for token, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ConfigError("words must be distinct")
        self._splitter = WordSplitter("words")
        for word in self.words:
            if (cut := self._splitter.words(word)) != [word]:
                raise ConfigError(f"words: each entry must be one word, got {word!a}, which is {len(cut)}")

    @classmethod
    def train_from_streams(
        cls,
        streams: Iterable[Iterable[str]],
        *,
        vocab_size: int | None = None,
        min_frequency: int = 1,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> Self:
        """The vocabulary is the most frequent words; ties are broken by code point order.

        Args:
            streams: texts, each an iterable of chunks
            vocab_size: maximum number of words and special tokens; None for all words
            min_frequency: minimum number of occurrences of a word
            special_tokens: as in the class

        Raises:
            ConfigError: if vocab_size has no room for a word, or no word occurs min_frequency times.
            DataError: if the texts are empty or have a lone surrogate.
        """
        if vocab_size is not None and vocab_size <= len(special_tokens):
            least = len(special_tokens) + 1
            raise ConfigError(f"vocab_size must be at least {least}, the special tokens and a word, got {vocab_size}")
        splitter, counts = WordSplitter("words"), Counter[str]()
        for block in blocks(streams, splitter.safe_cut):
            for text in block.texts:
                counts.update(splitter.words(text))
        if not counts:
            raise DataError("the corpus is empty: the vocabulary needs at least one word")
        if not 1 <= min_frequency <= max(counts.values()):
            raise ConfigError(
                f"min_frequency must be from 1 to {max(counts.values())}, the count of the most frequent word, "
                f"got {min_frequency}"
            )
        frequent = [word for word, count in counts.items() if count >= min_frequency]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls(frequent[: vocab_size and vocab_size - len(special_tokens)], special_tokens)

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """One id per word, int64 (n,).

        Raises:
            DataError: for an unknown word without `<unk>`, with its position; for a lone surrogate.
        """
        words = self._splitter.words(text)
        ids = np.fromiter(map(self._ids.get, words, repeat(-1)), dtype=np.int64, count=len(words))
        unknown = np.flatnonzero(ids < 0)
        if not len(unknown):
            return ids
        utf8(text)  # raises for a lone surrogate, which is not an unknown word
        if self.unknown is None:
            begins = list(accumulate(map(len, words), initial=start))
            raise DataError(
                f"word {words[unknown[0]][:40]!a} at position {begins[unknown[0]]} is not in the vocabulary of "
                f"{len(self.words)} words; add it to the corpus, or train the tokenizer with the special token "
                f"{UNKNOWN_WORD}"
            )
        ids[unknown] = self.unknown
        return ids

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none."""
        return self._splitter.safe_cut(text)

    def _sizes(self, text: str, ids: np.ndarray) -> np.ndarray:
        return np.array([len(utf8(word)) for word in self._splitter.words(text)], dtype=np.int64)

    def options(self) -> dict[str, Any]:
        """Vocabulary and special tokens."""
        return {"words": self.words, "special_tokens": list(self.special_tokens)}
