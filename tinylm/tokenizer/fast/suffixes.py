"""The repeated substrings of words, found by a suffix array (Manber and Myers 1990).

Sorting all suffixes of the words puts equal substrings side by side, so that each substring is a run of the array.
For "banana":

    suffix            a   ana   anana   banana   na   nana
    common prefix     0   1     3       0        0    2        characters shared with the suffix before

    runs of one character      [a ana anana]  [banana]  [na nana]
    runs of two characters     [ana anana]  [banana]  [na nana]         "a" is too short

A substring that is always followed, or always preceded, by the same character is less useful than the longer one: "an"
is always part of "ana" here. Only maximal substrings are found: they are followed by at least two different
characters, and preceded by two, where the beginning and the end of a word count as characters that differ from all
others. Their number is linear in the length of the text; the number of all substrings is quadratic.
"""

from typing import NamedTuple

import numpy as np

END = 0  # the symbol after each word


class Runs(NamedTuple):
    """Substrings, as runs of the sorted suffixes.

    Attributes:
        lengths: characters of each substring, (runs,)
        begins: index of the first suffix that begins with it, (runs,)
        ends: one past the index of the last one, (runs,)
        counts: occurrences of each substring: the sum of the weights of these suffixes, int64 (runs,)
    """

    lengths: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    counts: np.ndarray


class Suffixes:
    """The sorted suffixes of words.

    Args:
        symbols: the characters of all words as numbers from 1, each word followed by `END`, int32 (n,)
        weights: the number of occurrences of the word at each position, (n,)
        longest: the number of characters by which suffixes are sorted and compared, at most 127

    Attributes:
        order: the positions of the suffixes, without those that begin with `END`, in sorted order
    """

    def __init__(self, symbols: np.ndarray, weights: np.ndarray, longest: int) -> None:
        self.longest = longest
        self._symbols = np.append(symbols, np.zeros(longest, dtype=np.int32))
        self.order = _sorted(symbols, longest)
        self._common = self._common_prefixes()
        self._weights = np.append(0, np.cumsum(weights[self.order]))  # of all suffixes before each one
        preceding = np.append(END, symbols)[self.order]
        self._whole = preceding == END  # suffixes that are whole words
        changes = np.append(True, preceding[1:] != preceding[:-1]) | self._whole
        self._changes = np.cumsum(changes)  # of the preceding character, up to each suffix
        ends = np.flatnonzero(symbols == END)
        sizes = ends[np.searchsorted(ends, self.order)] - self.order
        shared = np.maximum(self._common[1:], self._common[:-1])
        self._alone = np.flatnonzero(self._whole & (shared < sizes))  # words that are not part of another one
        self._alone_sizes = sizes[self._alone]

    def _common_prefixes(self) -> np.ndarray:
        """The number of characters that each suffix shares with the one before it; -1 at the end of the array."""
        common = np.zeros(len(self.order) + 1, dtype=np.int8)
        common[-1] = -1
        same = np.arange(1, len(self.order))
        for length in range(self.longest):
            left, right = (self._symbols[self.order[same - back] + length] for back in (1, 0))
            same = same[(left == right) & (left != END)]
            common[same] = length + 1
        return common

    def substrings(self) -> Runs:
        """All single characters, and the maximal longer substrings that occur at least twice; the longest first."""
        found = [*map(self._maximal, range(self.longest, 1, -1)), self._characters()]
        lengths = np.repeat(np.arange(self.longest, 0, -1), [len(begins) for begins, _ in found])
        begins, ends = (np.concatenate(each) for each in zip(*found, strict=True))
        counts = self._weights[ends] - self._weights[begins]
        kept = (counts > 1) | (lengths == 1)
        return Runs(lengths[kept], begins[kept], ends[kept], counts[kept])

    def _characters(self) -> tuple[np.ndarray, np.ndarray]:
        edges = np.flatnonzero(self._common < 1)
        return edges[:-1], edges[1:]

    def _maximal(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """First indices, and ends, of the runs of maximal substrings of a length."""
        edges = np.flatnonzero(self._common < length)  # where the first `length` characters change
        branching = np.unique(np.searchsorted(edges, np.flatnonzero(self._common == length), side="right") - 1)
        begins, ends = edges[branching], edges[branching + 1]
        varied = (self._changes[ends - 1] > self._changes[begins]) | self._whole[begins]
        alone = self._alone[self._alone_sizes == length]
        return np.append(begins[varied], alone), np.append(ends[varied], alone + 1)


def _sorted(symbols: np.ndarray, longest: int) -> np.ndarray:
    """Positions sorted by their first `longest` symbols or more, by prefix doubling, without those of `END`.

    Once the positions are ranked by w symbols, the ranks at i and at i + w rank them by 2w. The first w symbols are
    packed into one integer.
    """
    bits, width = int(symbols.max(initial=1)).bit_length(), 1
    ranks, largest = symbols.astype(np.int64), 1 << bits
    while True:
        while width < longest and largest <= 1 << 31:
            ranks = ranks * largest + np.append(ranks[width:], np.zeros(min(width, len(ranks)), dtype=np.int64))
            width, largest = 2 * width, largest * largest
        order = ranks.argsort()
        if width >= longest:
            return order[np.count_nonzero(symbols == END) :].astype(np.int32)
        in_order = ranks[order]
        ranks[order] = np.cumsum(np.append(0, in_order[1:] != in_order[:-1]))
        largest = int(ranks.max()) + 1
