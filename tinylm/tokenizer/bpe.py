"""Byte-level byte pair encoding (Gage 1994; Sennrich et al. 2016; on bytes: GPT-2).

Training starts from the 256 bytes and repeatedly makes the most frequent pair of neighbours a new token. Encoding
starts from a word's bytes and merges neighbours in the order in which the pairs were learned:

    merges        1. h e      2. l o      3. he l
    "hello"       h e l l o > he l l o > he l lo > hel lo

`textbook.py` does this in thirty lines. This file is fast because words are merged independently, so each distinct word
is merged only once. `pretokenize.py` splits text into words, `words.py` recognizes known words, `learning.py` learns
merges from word counts, and `merging.py` merges. Any text can be encoded, since every byte is a token. Given GPT-2's
merges, the ids are GPT-2's.

Not supported: tokens that span words. `pipeline.py` normalizes text and finds added tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError
from tinylm.files import read_json
from tinylm.tokenizer.alphabet import BYTE_IDS, BYTES, printable
from tinylm.tokenizer.fast.arrays import slices
from tinylm.tokenizer.fast.blocks import Block, utf8
from tinylm.tokenizer.fast.counting import count_words
from tinylm.tokenizer.fast.learning import MergeLearner, Pair
from tinylm.tokenizer.fast.merging import MergeTable, merge_some, merge_word
from tinylm.tokenizer.fast.pretokenize import WordSplitter
from tinylm.tokenizer.fast.words import SPELLED, WordTable, looked_up
from tinylm.tokenizer.formats.merges import NamedMerges, reading, require
from tinylm.tokenizer.learned import VOCAB_SIZE, WordwiseTokenizer

_BYTE_IDS = np.frombuffer(BYTE_IDS, dtype=np.uint8)

MAX_IDS = 1 << 24  # a damaged file must not make a huge, sparse vocabulary
MAX_BYTES = 1 << 26  # of all tokens together; thirty merges of a hostile file could reach gigabytes by doubling
LONG = 1000  # bytes; with BPE dropout, longer words are cut first


class BPETokenizer(WordwiseTokenizer):
    """Byte-level BPE. Bytes, merged tokens and special tokens are numbered in this order, or by `ids`.

    Args:
        merges: pairs of ids in the order in which they were learned. A merge makes the next id, or an existing token if
            that has the same bytes.
        pattern: the pre-tokenizer's pattern, as in `WordSplitter`
        special_tokens: names; their ids follow the merged tokens'
        ids: the id of each token, as in other tools' files: `ids[i]` instead of i. Skipped ids become tokens without
            bytes, which no text contains. -1 marks a byte without a token, which encoding leaves out. `merges` always
            uses the default numbering.

    Attributes:
        missing: the bytes without a token

    Raises:
        ConfigError: if a merge uses an id that does not exist yet, the pattern is invalid, or ids are not distinct.
    """

    kind = "bpe"

    def __init__(
        self,
        merges: Sequence[Sequence[int]],
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        ids: Sequence[int] | None = None,
    ) -> None:
        token_bytes = [bytes([byte]) for byte in BYTES]
        index = {piece: token for token, piece in enumerate(token_bytes)}
        self.merges = [(left, right) for left, right in merges]
        self._merged: dict[Pair, Pair] = {}  # pair -> (rank, token)
        size = 0
        for rank, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(token_bytes) and 0 <= right < len(token_bytes)) or (left, right) in self._merged:
                raise ConfigError(
                    f"merges: merge {rank} repeats an earlier one, or uses an id that no earlier merge makes"
                )
            size += len(token_bytes[left]) + len(token_bytes[right])
            if size > MAX_BYTES:
                raise ConfigError(f"merges: the tokens up to merge {rank} have more than {MAX_BYTES:,} bytes")
            piece = token_bytes[left] + token_bytes[right]
            token = index.setdefault(piece, len(token_bytes))
            self._merged[left, right] = rank, token
            if token == len(token_bytes):
                token_bytes.append(piece)
        super().__init__(token_bytes, special_tokens)
        self._ids = None if ids is None else check_ids(ids, len(self.token_bytes), may_miss=256)
        self.missing: tuple[int, ...] = ()
        if self._ids is not None:
            self.missing = tuple(BYTES[token] for token in np.flatnonzero(self._ids < 0))
            self._renumber(self._ids)
        self._left_out = bytes(self.missing)
        self.pattern = pattern
        self._splitter = WordSplitter(pattern)
        self._remembered: dict[str, list[int]] = {}  # word -> ids, for short texts
        self._words = WordTable(self.dtype)  # for blocks

    @classmethod
    def from_gpt2(cls, vocab: str | Path, merges: str | Path) -> Self:
        """Reads GPT-2's vocab.json and merges.txt.

        Vocabulary entries that are neither bytes nor merged tokens, such as `<|endoftext|>`, become special tokens.

        Raises:
            MissingInputError: if a file is missing.
            DataError: if the files are damaged, do not match, or have another format.
        """
        ids, merges = read_json(require(vocab)), require(merges)
        with reading(merges, "a list of merges"):
            table = NamedMerges.from_merges_txt(merges)
        with reading(vocab, "a vocabulary"):
            special = sorted((name for name in ids if name not in table), key=ids.__getitem__)
            return cls(**table.arguments(ids, special))

    def names_and_ids(self) -> tuple[list[str], Sequence[int]]:
        """The printable names of bytes and merged tokens, and the ids of all tokens, special tokens last.

        The id of a missing byte is -1.
        """
        ids = self.ids or range(self.vocab_size)
        ordinary = ids[: len(ids) - len(self.special_tokens)]
        named = [self.token_bytes[token] if token >= 0 else bytes([BYTES[i]]) for i, token in enumerate(ordinary)]
        return [printable(piece) for piece in named], ids

    def _renumber(self, ids: np.ndarray) -> None:
        token_bytes = [b""] * (int(ids.max()) + 1)
        for token, piece in zip(ids.tolist(), self.token_bytes, strict=True):
            if token >= 0:
                token_bytes[token] = piece
        self.token_bytes = token_bytes
        self.special_tokens = {name: int(ids[token]) for name, token in self.special_tokens.items()}

    @property
    def ids(self) -> list[int] | None:
        """The ids of bytes, merged tokens and special tokens, or None if numbered in order."""
        return None if self._ids is None else self._ids.tolist()

    # --- training

    @classmethod
    def train_from_blocks(
        cls,
        found: Iterable[Block],
        *,
        vocab_size: int = VOCAB_SIZE,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        processes: int | None = 1,
        memory_limit: int | None = None,
        progress: Callable[[str, int], object] = lambda stage, done: None,
    ) -> Self:
        """Learns merges. Memory grows with the number of distinct words, not with the length of the text.

        Args:
            found: the text
            vocab_size: number of bytes, merged tokens and special tokens; smaller if every word becomes one token first
            pattern: as in the class
            special_tokens: as in the class
            processes: processes that count words; None for one per core
            memory_limit: megabytes for distinct words, besides about 200 for the program. Beyond it the rarest words
                are dropped, with a notice, and rare merges may differ.
            progress: called with ("counting", bytes read so far), then with ("merging", merges so far)

        Raises:
            ConfigError: if vocab_size is smaller than the number of bytes and special tokens.
            DataError: if the text is empty or has a lone surrogate.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ConfigError(f"vocab_size must be at least {smallest}, the bytes and special tokens, got {vocab_size}")
        words, sizes, counts = count_words(found, pattern, processes, memory_limit, progress)
        learner = MergeLearner(_BYTE_IDS[words], sizes, counts, [bytes([byte]) for byte in BYTES])
        del words, sizes, counts  # frees memory: the learner has copies
        merges: list[Pair] = []
        for pair in learner.learn(vocab_size - len(special_tokens)):
            merges.append(pair)
            progress("merging", len(merges))
        return cls(list(dict.fromkeys(merges)), pattern, special_tokens)

    # --- encoding

    @cached_property
    def _table(self) -> MergeTable:
        return MergeTable(self._merged)

    def _outer(self, tokens: np.ndarray) -> np.ndarray:
        """The ids of tokens in the default numbering."""
        return tokens if self._ids is None else self._ids[tokens]

    def _encode_short(self, text: str, start: int = 0) -> list[int]:
        return looked_up(self._splitter.words(text), self._remembered, self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        tokens = merge_word(list(utf8(word).translate(BYTE_IDS, self._left_out)), self._merged)
        return tokens if self._ids is None else self._ids[tokens].tolist()

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a text, int64 (n,), with BPE dropout: each merge is left out with the probability alpha.

        Raises:
            ConfigError: for an alpha that is not from 0 to 1.
            DataError: for a lone surrogate.
        """
        check_dropout(alpha)
        tokens: list[int] = []
        for word in self._splitter.words(text):
            inner = utf8(word).translate(BYTE_IDS, self._left_out)
            for begin in range(0, len(inner), LONG):
                tokens += merge_some([*inner[begin : begin + LONG]], self._merged, alpha, random)
        return self._outer(np.array(tokens, dtype=np.int64))

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The byte range of each id, as in `Tokenizer.spans`. Missing bytes lie between the ranges."""
        spans = super().spans(text, ids)
        if not self.missing:
            return spans
        kept = np.flatnonzero(~np.isin(np.frombuffer(utf8(text), dtype=np.uint8), self.missing))
        return np.stack([kept[spans[:, 0]], kept[spans[:, 1] - 1] + 1], axis=1)

    def _spell_new(
        self, block: Block, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray
    ) -> None:
        """Merges all new words of a block at once and stores their ids in `_words`."""
        lists, short = self._words.lists, sizes <= SPELLED
        words, sizes_left = self._without_missing(slices(data, starts[short], sizes[short]), sizes[short])
        left = sizes_left > 0
        ids = _BYTE_IDS[words].astype(np.int32)
        for done, tokens, counts in self._table.merge_words(ids, sizes_left[left]):
            lists.put(numbers[short][left][done], self._outer(tokens), counts)
        for place in np.flatnonzero(~short):
            word = data[starts[place] : starts[place] + sizes[place]].tobytes().translate(BYTE_IDS, self._left_out)
            tokens = np.array(merge_word(list(word), self._merged), dtype=np.int64)
            lists.put(numbers[[place]], self._outer(tokens), np.array([len(tokens)]))

    def _without_missing(self, words: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Words without the missing bytes: their bytes, uint8 (bytes,), and sizes, (words,)."""
        if not self.missing:
            return words, sizes
        kept = ~np.isin(words, self.missing)
        return words[kept], np.diff(np.append(0, np.cumsum(kept)[np.cumsum(sizes) - 1]))

    def options(self) -> dict[str, Any]:
        """Merges, pattern and special tokens, and ids unless they are 0, 1, 2, ..."""
        options = {
            "merges": [list(pair) for pair in self.merges],
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
        }
        return options if self.ids is None else options | {"ids": self.ids}


def check_dropout(probability: float) -> None:
    """Raises ConfigError for a probability out of range."""
    if not 0 <= probability <= 1:
        raise ConfigError(f"alpha must be from 0 to 1, the probability of leaving out a merge, got {probability}")


def check_ids(ids: Sequence[int], count: int, may_miss: int = 0) -> np.ndarray | None:
    """The ids of `count` tokens as int64 (count,), or None if they are 0, 1, 2, ...

    Raises:
        ConfigError: unless there are `count` distinct ids in range. The first `may_miss` may be -1 instead.
    """
    array = np.asarray(ids)
    if array.dtype.kind != "i" or array.ndim != 1:
        raise ConfigError("ids must be integers")
    given = np.concatenate([array[:may_miss][array[:may_miss] != -1], array[may_miss:]])
    distinct = len(np.unique(given))
    if not (distinct == len(given) > 0 and len(array) == count) or given.min() < 0 or given.max() >= MAX_IDS:
        raise ConfigError(
            f"ids must be {count} distinct integers from 0 to {MAX_IDS - 1}, one per token, "
            f"got {len(array)}, {distinct} of them distinct, from {array.min()} to {array.max()}"
        )
    return None if np.array_equal(array, np.arange(count)) else array.astype(np.int64)
