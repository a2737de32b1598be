"""Base classes of tokenizers that learn pieces from the counted words of a text."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.blocks import Block, blocks, file_blocks
from tinylm.tokenizer.fast.pretokenize import WordSplitter
from tinylm.tokenizer.fast.words import MAX_KNOWN, WordTable

VOCAB_SIZE = 4096  # by default
SHORT = 1500  # characters; longer texts are encoded faster with NumPy


class LearnedTokenizer(Tokenizer):
    """A tokenizer whose training counts the words of a text, block by block, in any number of processes."""

    has_size = True

    @classmethod
    @abstractmethod
    def train_from_blocks(cls, found: Iterable[Block], **options: Any) -> Self:
        """Learns pieces from blocks of a text. Each subclass documents its own options."""

    @classmethod
    def training_cut(cls, pattern: str) -> Callable[[str], int]:
        """The function `safe_cut` for a pattern that splits text into words."""
        return WordSplitter(pattern).safe_cut

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], *, pattern: str = "gpt2", **options: Any) -> Self:
        """Learns from texts that arrive in chunks. Options and errors as in `train_from_blocks`."""
        return cls.train_from_blocks(blocks(streams, cls.training_cut(pattern)), pattern=pattern, **options)

    @classmethod
    def train(
        cls, paths: Iterable[str | Path], *, pattern: str = "gpt2", processes: int | None = None, **options: Any
    ) -> Self:
        """Learns from UTF-8 files, by default with one process per core. Options as in `train_from_blocks`."""
        safe_cut = cls.training_cut(pattern)
        found = chain.from_iterable(file_blocks(Path(path), safe_cut) for path in paths)
        return cls.train_from_blocks(found, pattern=pattern, processes=processes, **options)

    def encode_block(self, block: Block) -> np.ndarray:
        """The ids of the texts of a block, int64 (n,), separated by `end_of_text` if there is such a token."""
        return self.encode_packed(block).astype(np.int64)

    @abstractmethod
    def encode_packed(self, block: Block) -> np.ndarray:
        """The ids of a block as in `encode_block`, but in `dtype` (n,)."""


class WordwiseTokenizer(LearnedTokenizer):
    """A learned tokenizer that encodes words independently, and each distinct word only once.

    The words of short texts are looked up one by one, those of longer texts a block at a time, with NumPy.
    """

    _splitter: Any  # WordSplitter, WholeWords or SpacedWords
    _words: WordTable

    @abstractmethod
    def _encode_short(self, text: str, start: int = 0) -> list[int]:
        """The ids of a short text. Arguments as in `encode_ordinary`."""

    @abstractmethod
    def _spell_new(
        self, block: Block, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray
    ) -> None:
        """Encodes new words of a block and stores their ids in `_words`. Other arguments as in `WordTable.spelled`."""

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Raises:
            DataError: for a lone surrogate, or a word that cannot be encoded, with its position.
        """
        if len(text) > SHORT:
            return np.concatenate([self.encode_block(block) for block in blocks([[text]], self.safe_cut)])
        return np.array(self._encode_short(text, start), dtype=np.int64)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text, as a list; short texts take a faster path."""
        if allow_special or len(text) > SHORT:
            return super().encode(text, allow_special=allow_special)
        return self._encode_short(text)

    def encode_packed(self, block: Block) -> np.ndarray:
        """The ids of a block in `dtype` (n,)."""
        if self._words.size > MAX_KNOWN:
            self._words = WordTable(self.dtype)
        data, starts = self._splitter.word_starts(block)
        numbers = self._words.spelled(data, starts, self.end_of_text, partial(self._spell_new, block))
        return self._words.lists.take(numbers)

    def _file_blocks(self, path: Path) -> Iterator[Block]:
        return file_blocks(path, self.safe_cut)

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none."""
        return self._splitter.safe_cut(text)
