"""Byte pair encoding: from bytes to frequent pieces of words (Gage 1994; Sennrich et al. 2016; on bytes, GPT-2).

Training starts with the 256 bytes and, again and again, makes the most frequent pair of neighbours a new token.
Encoding takes a word's bytes and merges neighbours in the order in which the pairs were learned:

    merges        1. h e      2. l o      3. he l
    "hello"       h e l l o > he l l o > he l lo > hel lo

`textbook.py` does this in thirty lines. What makes it fast is that words are merged apart from each other, so that each
different word is looked at once: `pretokenize.py` cuts the text into words, `words.py` knows a word again,
`learning.py` learns merges from words and their counts, `merging.py` merges. Any text can be encoded, since all bytes
are tokens. The ids are GPT-2's wherever the merges are.

Left out: dropout of merges, a normalization of the text, tokens that reach over words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError, DataError, notice
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.arrays import slices
from tinylm.tokenizer.fast.blocks import Block, blocks, file_blocks, utf8
from tinylm.tokenizer.fast.learning import MergeLearner, Pair
from tinylm.tokenizer.fast.merging import MergeTable, merge_word
from tinylm.tokenizer.fast.pretokenize import BETWEEN, WordSplitter
from tinylm.tokenizer.fast.words import MAX_KNOWN, SPELLED, BlockCounter, WordCounter, WordTable
from tinylm.workers import map_in_order

# GPT-2's order of the bytes: those that are printable in Latin-1 first. A byte's id is its place here.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = bytes([*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)])
BYTE_IDS = bytes(BYTES.index(byte) for byte in range(256))  # for bytes.translate: a word's bytes as ids
_BYTE_IDS = np.frombuffer(BYTE_IDS, dtype=np.uint8)

MAX_REMEMBERED = 1 << 18  # words of short texts whose tokens are kept
MAX_IDS = 1 << 24  # beyond it a damaged file would ask for a vocabulary of holes
WORDS_PER_MEGABYTE = 5000  # of memory, while they are counted and merged
ALONE = 30  # blocks; words of so little text are counted before other processes know enough words
SHORT = 1500  # characters; for a longer text NumPy's way pays


class BPETokenizer(Tokenizer):
    """Bytes, what is merged of them, then the special tokens: numbered in this order, or as `ids` says.

    Args:
        merges: pairs of ids in the order in which they were learned. Each makes the next new id, or, where its bytes
            are a token already, that one.
        pattern: what a word is, as `WordSplitter` takes it
        special_tokens: their ids follow
        ids: other numbers for all of these, as files of other tools have them: `ids[i]` instead of i. Numbers that are
            left out become tokens without bytes, which no text contains. The merges keep the numbers of their own.

    Raises:
        ConfigError: if a merge is of ids that are not there yet, the pattern is none, or ids are not different numbers.
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
        for rank, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(token_bytes) and 0 <= right < len(token_bytes)) or (left, right) in self._merged:
                raise ConfigError(f"merges: number {rank} is of ids that are not there yet, or a repetition")
            piece = token_bytes[left] + token_bytes[right]
            token = index.setdefault(piece, len(token_bytes))
            self._merged[left, right] = rank, token
            if token == len(token_bytes):
                token_bytes.append(piece)
        super().__init__(token_bytes, special_tokens)
        self._ids = None if ids is None else check_ids(ids, len(self.token_bytes))
        if self._ids is not None:
            self._renumber(self._ids)
        self.pattern = pattern
        self._splitter = WordSplitter(pattern)
        self._remembered: dict[str, list[int]] = {}  # the ids of words of short texts
        self._words = WordTable(self.dtype)  # and of blocks

    @staticmethod
    def from_gpt2(vocab: str | Path, merges: str | Path) -> "BPETokenizer":
        """Reads GPT-2's vocab.json and merges.txt. Errors as `read_gpt2`'s, in formats.py."""
        from tinylm.tokenizer.formats.gpt2 import read_gpt2  # it knows this file

        return read_gpt2(vocab, merges)

    def _renumber(self, ids: np.ndarray) -> None:
        token_bytes = [b""] * (int(ids.max()) + 1)
        for token, piece in zip(ids.tolist(), self.token_bytes, strict=True):
            token_bytes[token] = piece
        self.token_bytes = token_bytes
        self.special_tokens = {name: int(ids[token]) for name, token in self.special_tokens.items()}

    @property
    def ids(self) -> list[int] | None:
        """The ids of bytes, merges and special tokens, or None where they are counted."""
        return None if self._ids is None else self._ids.tolist()

    # --- training

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], *, pattern: str = "gpt2", **options: Any) -> Self:
        """As `Tokenizer`; options as `train_from_blocks`'s."""
        found = blocks(streams, WordSplitter(pattern).safe_cut)
        return cls.train_from_blocks(found, pattern=pattern, **options)

    @classmethod
    def train(
        cls, paths: Iterable[str | Path], *, pattern: str = "gpt2", processes: int | None = None, **options: Any
    ) -> Self:
        """As `Tokenizer`, by one process for each core; options as `train_from_blocks`'s."""
        safe_cut = WordSplitter(pattern).safe_cut
        found = chain.from_iterable(file_blocks(Path(path), safe_cut) for path in paths)
        return cls.train_from_blocks(found, pattern=pattern, processes=processes, **options)

    @classmethod
    def train_from_blocks(
        cls,
        found: Iterable[Block],
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        processes: int | None = 1,
        memory_limit: int | None = None,
        progress: Callable[[str, int], object] = lambda stage, done: None,
    ) -> Self:
        """Learns merges. Memory grows with the number of different words, not with the text.

        Args:
            found: the text
            vocab_size: bytes, merges and special tokens together; fewer where every word is one token before that
            pattern: as for the class
            special_tokens: as for the class
            processes: how many count words, as in `map_in_order`: None for one on each core
            memory_limit: megabytes for the words, beside some 200 for the rest. If there are more words, the rarest are
                forgotten, with a notice, and rare merges may be others.
            progress: is called with ("counting", bytes read so far), later with ("merging", merges so far)

        Raises:
            ConfigError: if vocab_size has no room for bytes and special tokens.
            DataError: if there is no text, or it has a lone surrogate.
        """
        if memory_limit is not None and memory_limit < 1:
            raise ConfigError(f"memory_limit must be at least 1 megabyte, got {memory_limit}")
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ConfigError(f"vocab_size must be at least {smallest}, the bytes and special tokens, got {vocab_size}")
        count, total, num_bytes = BlockCounter(pattern), WordCounter((memory_limit or 0) * WORDS_PER_MEGABYTE), 0
        for length, *counted in map_in_order(count, found, processes, alone=ALONE):
            total.add(*counted)
            num_bytes += length
            progress("counting", num_bytes)
        if total.forgotten:
            notice(f"more words than {memory_limit} MB can hold: forgot rare ones, {total.forgotten:,} occurrences")
        words, sizes, counts = total.take()
        if not len(counts):
            raise DataError("the corpus is empty: there is no word to learn from")
        learner = MergeLearner(_BYTE_IDS[words], sizes, counts, [bytes([byte]) for byte in BYTES])
        del count, total, words, sizes, counts  # much memory
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
        """The ids of tokens, where they are numbered otherwise."""
        return tokens if self._ids is None else self._ids[tokens]

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Raises:
            DataError: for a lone surrogate.
        """
        if len(text) > SHORT:
            return np.concatenate([self.encode_block(block) for block in blocks([[text]], self.safe_cut)])
        return np.array(self._encode_short(text), dtype=np.int64)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """As `Tokenizer`."""
        if allow_special or len(text) > SHORT:
            return super().encode(text, allow_special=allow_special)
        return self._encode_short(text)

    def _encode_short(self, text: str) -> list[int]:
        words = self._splitter.words(text)
        try:
            return [*chain.from_iterable(map(self._remembered.__getitem__, words))]
        except KeyError:
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.clear()
            for word in words:
                if word not in self._remembered:
                    tokens = merge_word(list(utf8(word).translate(BYTE_IDS)), self._merged)
                    self._remembered[word] = tokens if self._ids is None else self._ids[tokens].tolist()
            return [*chain.from_iterable(map(self._remembered.__getitem__, words))]

    def safe_cut(self, text: str) -> int:
        """As `Tokenizer`."""
        return self._splitter.safe_cut(text)

    def _file_blocks(self, path: Path) -> Iterator[Block]:
        return file_blocks(path, self.safe_cut)

    def encode_block(self, block: Block) -> np.ndarray:
        """As `Tokenizer`."""
        return self.encode_packed(block).astype(np.int64)

    def encode_packed(self, block: Block) -> np.ndarray:
        """As `Tokenizer`: all words at once."""
        if self._words.size > MAX_KNOWN:
            self._words = WordTable(self.dtype)
        data, starts = self._splitter.word_starts(block)
        numbers = self._words.numbers(data, starts)
        new, places = self._words.new_words(numbers)
        self._merge_new_words(data, starts[places], np.diff(starts, append=len(data))[places], new)
        return self._words.lists.take(numbers)

    def _merge_new_words(self, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> None:
        """Finds the tokens of words for the first time.

        Args:
            data: a text, uint8 (bytes,)
            starts: of the words in it, (words,)
            sizes: in bytes, (words,)
            numbers: of the words in `_words`, (words,)
        """
        lists = self._words.lists
        edge = data[starts] == BETWEEN
        if self.end_of_text is not None:
            lists.put(numbers[edge], np.full(edge.sum(), self.end_of_text), np.ones(edge.sum(), dtype=np.int64))
        short = (sizes <= SPELLED) & ~edge
        ids = _BYTE_IDS[slices(data, starts[short], sizes[short])].astype(np.int32)
        for done, tokens, counts in self._table.merge_words(ids, sizes[short]):
            lists.put(numbers[short][done], self._outer(tokens), counts)
        for place in np.flatnonzero(sizes > SPELLED):
            word = data[starts[place] : starts[place] + sizes[place]]
            tokens = np.array(merge_word(_BYTE_IDS[word].tolist(), self._merged))
            lists.put(numbers[[place]], self._outer(tokens), np.array([len(tokens)]))

    def options(self) -> dict[str, Any]:
        """Merges, pattern and special tokens; ids where they are not counted."""
        options = {
            "merges": [list(pair) for pair in self.merges],
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
        }
        return options if self.ids is None else options | {"ids": self.ids}


def check_ids(ids: Sequence[int], count: int) -> np.ndarray | None:
    """The ids of `count` tokens as int64 (count,), or None where they are 0, 1, 2 ...

    Raises:
        ConfigError: if they are not as many different numbers.
    """
    array = np.asarray(ids)
    if array.dtype.kind != "i" or array.ndim != 1:
        raise ConfigError("ids must be whole numbers")
    different = len(np.unique(array))
    if not different == len(array) == count or array.min() < 0 or array.max() >= MAX_IDS:
        raise ConfigError(
            f"ids must be {count} different numbers below {MAX_IDS}, not negative, one for each token, "
            f"got {len(array)}, {different} of them different, from {array.min()} to {array.max()}"
        )
    return None if np.array_equal(array, np.arange(count)) else array.astype(np.int64)
