"""Numbers for words: the same word has the same number each time, found for a megabyte of text at once.

What a tokenizer does with a word, it does once for each different word; that needs a quick way from the bytes of a word
to what is known of it. A word of up to seven bytes *is* a 64-bit number: its bytes, and its length in the eighth.
A longer one is spelled in pieces of seven, and the numbers of what was spelled so far and of the next piece make up the
next key:

    " understanding" = " unders" "tanding"      key(" unders") -> 5      key("tanding") -> 9      (5, 9) -> 23

So two words have the same number exactly if they have the same bytes: nothing is left to the luck of a hash.
"""

import numpy as np
from numpy.typing import DTypeLike

from tinylm.tokenizer.fast.arrays import KeyTable, Ragged, slices
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.pretokenize import BETWEEN, WordSplitter

PIECE = 7  # bytes
MAX_KNOWN = 1 << 19  # words and pieces; a table that would grow larger begins anew, where that is possible
SPELLED = 8 * PIECE  # bytes; longer words are rare, and Python's dict numbers them
_LENGTHS = np.arange(PIECE + 1, dtype=np.uint64) << np.uint64(56)
_MASKS = (np.uint64(1) << np.arange(PIECE + 1, dtype=np.uint64) * np.uint64(8)) - np.uint64(1)
_PAIR, _LONG = np.uint64(1 << 63), np.uint64(1 << 62)  # mark the keys that are not bytes and a length


class WordTable:
    """Words -> numbers below `size` -> what is known of each, a list. (Pieces have numbers too.)

    Args:
        dtype: of the lists' values

    Attributes:
        lists: the lists of numbers; that of a new word is empty
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._table = KeyTable()
        self._long: dict[bytes, int] = {}
        self.lists = Ragged(dtype)

    @property
    def size(self) -> int:
        """How many numbers were given so far."""
        return self._table.size

    def numbers(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The numbers of the words of a text.

        Args:
            data: the text, uint8 (bytes,)
            starts: where words begin in it, int64 (words,), the first at 0; each ends where the next begins

        Returns:
            int32 (words,)
        """
        numbers = self._numbers(data, starts)
        self.lists.reserve(self.size)
        return numbers

    def new_words(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which words have no list yet, and where each is among the given ones: int32 (n,) -> two of (new words,)."""
        without = (self.lists.sizes(numbers) == 0).nonzero()[0]
        new, first = np.unique(numbers[without], return_index=True)
        return new, without[first]

    def _numbers(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        lengths = np.diff(starts, append=len(data))
        padded = np.concatenate([data, np.zeros(SPELLED + 8, dtype=np.uint8)])
        eights = np.ndarray(len(padded) - 8, dtype="<u8", buffer=padded, strides=(1,))  # the 8 bytes from each place on
        numbers = self._table.find_or_add(_piece_keys(eights.take(starts), lengths))
        unfinished = np.flatnonzero(lengths > PIECE)
        for spelled in range(PIECE, SPELLED, PIECE):
            if not len(unfinished):
                return numbers
            pieces = eights[starts[unfinished] + spelled]
            pieces = self._table.find_or_add(_piece_keys(pieces, lengths[unfinished] - spelled))
            so_far = numbers[unfinished].astype(np.uint64) << np.uint64(31)
            numbers[unfinished] = self._table.find_or_add(_PAIR | so_far | pieces.astype(np.uint64))
            unfinished = unfinished[lengths[unfinished] > spelled + PIECE]
        if len(unfinished):
            words = [data[starts[i] : starts[i] + lengths[i]].tobytes() for i in unfinished]
            places = [self._long.setdefault(word, len(self._long)) for word in words]
            numbers[unfinished] = self._table.find_or_add(_LONG | np.array(places, dtype=np.uint64))
        return numbers


def _piece_keys(eights: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The keys of pieces: up to seven bytes of each eight, and their number in the last byte."""
    lengths = np.minimum(lengths, PIECE)
    return (eights & _MASKS.take(lengths)) | _LENGTHS.take(lengths)


class WordCounter:
    """Counts words, of which text may come again and again.

    Args:
        most: how many words and pieces of words to know at most; of more the rarest are forgotten. 0: all

    Attributes:
        forgotten: how often words occurred that were forgotten
    """

    def __init__(self, most: int = 0) -> None:
        self._most, self.forgotten = most, 0
        self._begin()

    def _begin(self) -> None:
        self._table = WordTable(np.uint8)  # the list of a word: its bytes
        self._counts = np.zeros(0, dtype=np.int64)

    @property
    def size(self) -> int:
        """How many words are known, and pieces of them."""
        return self._table.size

    def add(self, data: np.ndarray, starts: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Counts the words of a text.

        Args:
            data: the text, uint8 (bytes,)
            starts: where words begin in it, as in `WordTable.numbers`; separators are not counted
            counts: how often each occurs, where not once, int64 (words,)
        """
        self._count(data, starts, counts)
        if self._most and self.size > self._most:
            self._forget()

    def _count(self, data: np.ndarray, starts: np.ndarray, counts: np.ndarray | None) -> None:
        numbers = self._table.numbers(data, starts)
        new, places = self._table.new_words(numbers)
        sizes = np.diff(starts, append=len(data))[places]
        self._table.lists.put(new, slices(data, starts[places], sizes), sizes)
        if self._table.size > len(self._counts):
            self._counts = np.pad(self._counts, (0, 3 * self._table.size // 2 - len(self._counts)))
        if counts is None:
            self._counts += np.bincount(numbers[data[starts] != BETWEEN], minlength=len(self._counts))
        else:
            self._counts[numbers] += counts  # each is there once

    def _forget(self) -> None:
        """Keeps those words that occurred most often, half as many as there may be."""
        words, sizes, counts = self.take()
        often = np.zeros(len(counts), dtype=bool)
        often[np.argsort(-counts, kind="stable")[: max(1, self._most // 2)]] = True
        self.forgotten += int(counts[~often].sum())
        self._begin()
        self._count(words[np.repeat(often, sizes)], np.cumsum(sizes[often]) - sizes[often], counts[often])

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The words that were counted: their bytes one after the other, their sizes in bytes, and their counts, which
        begin at 0 again."""
        words = np.flatnonzero(self._counts)
        counts = self._counts[words]
        self._counts[:] = 0
        return self._table.lists.take(words), self._table.lists.sizes(words), counts


class BlockCounter:
    """Counts the words of one block after the other; what can be sent to other processes.

    Args:
        pattern: as `WordSplitter` takes it
    """

    def __init__(self, pattern: str) -> None:
        self._splitter, self._counter = WordSplitter(pattern), WordCounter()

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return BlockCounter, (self._splitter.pattern,)

    def __call__(self, block: Block) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Bytes read; then different words as `WordCounter.add` takes them."""
        if self._counter.size > MAX_KNOWN // 2:
            self._counter = WordCounter()
        self._counter.add(*self._splitter.word_starts(block))
        words, sizes, counts = self._counter.take()
        return len(block.data), words, np.cumsum(sizes) - sizes, counts
