"""Word numbers: a vectorized dictionary from words to numbers, which processes a megabyte of text at once.

A tokenizer processes each distinct word once and then looks it up, so the lookup must be fast. The key of a word of up
to seven bytes is a 64-bit integer: its bytes, and its length in the eighth byte. A longer word is read in pieces of
seven bytes. The number of the prefix and the number of the next piece form the key of the longer prefix:

    " understanding" = " unders" "tanding"      key(" unders") -> 5      key("tanding") -> 9      (5, 9) -> 23

Two words therefore have the same number if and only if they have the same bytes. Hash collisions cannot confuse them.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from tinylm.tokenizer.fast.arrays import KeyTable, Ragged, slices
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.pretokenize import BETWEEN, WordSplitter

Word = TypeVar("Word", str, bytes)
Speller = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], object]
PIECE = 7  # bytes
MAX_KNOWN = 1 << 19  # words and pieces; larger tables are cleared where possible
TOGETHER = 1 << 15  # words counted at once, which takes about a megabyte
MAX_REMEMBERED = 1 << 18  # words of short texts
SPELLED = 8 * PIECE  # bytes; longer words are rare, and a Python dict numbers them
_LENGTHS = np.arange(PIECE + 1, dtype=np.uint64) << np.uint64(56)
_MASKS = (np.uint64(1) << np.arange(PIECE + 1, dtype=np.uint64) * np.uint64(8)) - np.uint64(1)
_PAIR, _LONG = np.uint64(1 << 63), np.uint64(1 << 62)  # mark keys of prefix-piece pairs and of long words


def looked_up(words: Sequence[Word], known: dict[Word, list[int]], encode: Callable[[Word], list[int]]) -> list[int]:
    """The ids of the words of a short text, joined. Each distinct word is encoded once, and remembered in `known`."""
    try:
        return [*chain.from_iterable(map(known.__getitem__, words))]
    except KeyError:
        if len(known) > MAX_REMEMBERED:
            known.clear()
        for word in words:
            if word not in known:
                known[word] = encode(word)
        return [*chain.from_iterable(map(known.__getitem__, words))]


class WordTable:
    """Numbers words, and stores a list of values for each number. Pieces of words get numbers too.

    Args:
        dtype: type of the lists' values

    Attributes:
        lists: the list of each number; empty for a new word
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._table = KeyTable()
        self._long: dict[bytes, int] = {}
        self.lists = Ragged(dtype)

    @property
    def size(self) -> int:
        """Count of numbers assigned so far."""
        return self._table.size

    def numbers(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Returns the numbers of the words of a text, adding new words.

        Args:
            data: the text, uint8 (bytes,)
            starts: offset of each word, int64 (words,), beginning with 0; a word ends where the next one begins

        Returns:
            numbers, int32 (words,)
        """
        numbers = self._numbers(data, starts)
        self.lists.reserve(self.size)
        return numbers

    def new_words(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct numbers that have no list yet, and the index of the first occurrence of each."""
        without = (self.lists.sizes(numbers) == 0).nonzero()[0]
        new, first = np.unique(numbers[without], return_index=True)
        return new, without[first]

    def spelled(self, data: np.ndarray, starts: np.ndarray, separator: int | None, spell: Speller) -> np.ndarray:
        """Returns the numbers of the words of a text, int32 (words,). New words get their lists first.

        Args:
            data: as in `numbers`
            starts: as in `numbers`
            separator: the value that stands for `SEPARATOR`, or None
            spell: called with the text, and the offset, size in bytes and number of each new word; stores their lists
        """
        numbers = self.numbers(data, starts)
        new, places = self.new_words(numbers)
        begins, sizes = starts[places], np.diff(starts, append=len(data))[places]
        edge = data[begins] == BETWEEN
        if separator is not None:
            self.lists.put(new[edge], np.full(edge.sum(), separator), np.ones(edge.sum(), dtype=np.int64))
        spell(data, begins[~edge], sizes[~edge], new[~edge])
        return numbers

    def _numbers(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        lengths = np.diff(starts, append=len(data))
        padded = np.concatenate([data, np.zeros(SPELLED + 8, dtype=np.uint8)])
        eights = np.ndarray(len(padded) - 8, dtype="<u8", buffer=padded, strides=(1,))  # the 8 bytes from each offset
        few = 16 * len(starts) < len(data)  # take is faster for many words, but first copies the overlapping array
        firsts = eights[starts] if few else eights.take(starts)
        numbers = self._table.find_or_add(_piece_keys(firsts, lengths))
        unfinished = np.flatnonzero(lengths > PIECE)
        for offset in range(PIECE, SPELLED, PIECE):
            if not len(unfinished):
                return numbers
            pieces = eights[starts[unfinished] + offset]
            pieces = self._table.find_or_add(_piece_keys(pieces, lengths[unfinished] - offset))
            prefixes = numbers[unfinished].astype(np.uint64) << np.uint64(31)
            numbers[unfinished] = self._table.find_or_add(_PAIR | prefixes | pieces.astype(np.uint64))
            unfinished = unfinished[lengths[unfinished] > offset + PIECE]
        if len(unfinished):
            words = [data[starts[i] : starts[i] + lengths[i]].tobytes() for i in unfinished]
            indices = [self._long.setdefault(word, len(self._long)) for word in words]
            numbers[unfinished] = self._table.find_or_add(_LONG | np.array(indices, dtype=np.uint64))
        return numbers


def _piece_keys(eights: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Makes the keys of pieces: the first (up to) seven of each eight bytes, and their count in the last byte."""
    lengths = np.minimum(lengths, PIECE)
    return (eights & _MASKS.take(lengths)) | _LENGTHS.take(lengths)


class WordCounter:
    """Counts words over many texts, in bounded memory if asked.

    Args:
        most: maximum number of words and pieces to hold; beyond it the rarest words are dropped. 0: no maximum

    Attributes:
        forgotten: total count of the dropped words
    """

    def __init__(self, most: int = 0) -> None:
        self._most, self.forgotten = most, 0
        self._begin()

    def _begin(self) -> None:
        self._table = WordTable(np.uint8)  # the list of a word is its bytes
        self._counts = np.zeros(0, dtype=np.int64)

    @property
    def size(self) -> int:
        """Count of words and pieces held."""
        return self._table.size

    def add(self, data: np.ndarray, starts: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Counts the words of a text.

        Args:
            data: the text, uint8 (bytes,)
            starts: offset of each word, as in `WordTable.numbers`; separators are not counted
            counts: occurrences of each word, int64 (words,), if the words are distinct; default: 1 each
        """
        for first in range(0, len(starts), TOGETHER):
            begins = starts[first : first + TOGETHER]
            begin, after = begins[0], first + TOGETHER
            end = starts[after] if after < len(starts) else len(data)
            self._count(data[begin:end], begins - begin, None if counts is None else counts[first:after])
        if self._most and self.size > self._most:
            self._forget()

    def _count(self, data: np.ndarray, starts: np.ndarray, counts: np.ndarray | None) -> None:
        numbers = self._table.numbers(data, starts)
        new, first = self._table.new_words(numbers)
        sizes = np.diff(starts, append=len(data))[first]
        self._table.lists.put(new, slices(data, starts[first], sizes), sizes)
        if self._table.size > len(self._counts):
            self._counts = np.pad(self._counts, (0, 3 * self._table.size // 2 - len(self._counts)))
        if counts is None:
            self._counts += np.bincount(numbers[data[starts] != BETWEEN], minlength=len(self._counts))
        else:
            self._counts[numbers] += counts  # the words are distinct

    def _forget(self) -> None:
        """Keeps only the most frequent words, half of the maximum."""
        words, sizes, counts = self.take()
        kept = np.zeros(len(counts), dtype=bool)
        kept[np.argsort(-counts, kind="stable")[: max(1, self._most // 2)]] = True
        self.forgotten += int(counts[~kept].sum())
        self._begin()
        self._count(words[np.repeat(kept, sizes)], np.cumsum(sizes[kept]) - sizes[kept], counts[kept])

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the counted words and resets the counts to 0.

        Returns:
            the words' bytes, concatenated; their sizes in bytes; and their counts
        """
        words = np.flatnonzero(self._counts)
        counts = self._counts[words]
        self._counts[:] = 0
        lists = self._table.lists
        taken = [lists.take(words[first : first + TOGETHER]) for first in range(0, len(words), TOGETHER)]
        return np.concatenate([np.zeros(0, dtype=np.uint8), *taken]), lists.sizes(words), counts


class Splitter(Protocol):
    """Splits the texts of a block into words, as `WordSplitter` does. It can be pickled."""

    def word_starts(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The block's text, uint8 (bytes,), and the offsets at which words begin, int64 (words,)."""
        ...


class BlockCounter:
    """A picklable word counter for one block.

    Args:
        splitter: the pattern of a `WordSplitter`, or another splitter with its `word_starts`

    Attributes:
        splitter: the splitter
    """

    def __init__(self, splitter: str | Splitter) -> None:
        self.splitter = WordSplitter(splitter) if isinstance(splitter, str) else splitter
        self._counter = WordCounter()

    def __reduce__(self) -> tuple[type, tuple[Splitter]]:
        return BlockCounter, (self.splitter,)

    def __call__(self, block: Block) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the size of the block in bytes, then its distinct words as arguments of `WordCounter.add`."""
        if self._counter.size > MAX_KNOWN // 2:
            self._counter = WordCounter()
        self._counter.add(*self.splitter.word_starts(block))
        words, sizes, counts = self._counter.take()
        return len(block.data), words, np.cumsum(sizes) - sizes, counts
