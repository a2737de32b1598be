"""All segmentations of many words at once: their sum, expected counts and the best ones.

An arc is a piece at one place of a word. A segmentation is a path of arcs from the beginning of the word to its end.
`textbook_unigram` walks through one word after another; here all words take the same step together. Words are sorted
by length, the longest first, so that the words with at least t characters are the first ones:

    word     column 0    1    2    3    4          before[t]: an array over the words that reach column t, here
    hugs            .    .    .    .    .          of sizes 3, 3, 3, 2, 1
    hug             .    .    .    .
    hu              .    .    .

Arcs that begin in the same column and have the same length form a slice, at most one arc to a word. The forward
algorithm takes one step per slice:

    before[column + length][words] += before[column][words] * weights

Probabilities are multiplied; adding their logarithms would take several times as long. The weight of an arc is its
probability, times the probability of the best segmentation up to its begin, divided by that of the best one up to its
end. So nothing can underflow or overflow: `before` is at least 1, and at most the number of segmentations. The factors
cancel in every ratio.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

LONGEST = 256  # characters of a word: 2^255 segmentations are far from the largest float64, 2^1024

Occurrences = Sequence[tuple[int, np.ndarray, np.ndarray]]  # a length; positions in the text; the piece at each


class Lattice:
    """The arcs of words, which are intervals of a text.

    Args:
        starts: where each word begins in the text, int (words,)
        sizes: characters of each word, at most `LONGEST`, in descending order, int (words,)
        occurrences: for each length, where in the text pieces of this length occur. Those that do not fit in a word are
            ignored.
        whole: whether an arc may be a whole word

    Attributes:
        pieces: the piece of each arc, sorted by column, length and word, int32 (arcs,)
        words: the word of each arc, int64 (arcs,): indices of this type need no conversion
    """

    def __init__(self, starts: np.ndarray, sizes: np.ndarray, occurrences: Occurrences, whole: bool = True) -> None:
        longest = int(sizes.max(initial=0))
        self._reach = np.searchsorted(-sizes, -np.arange(longest + 1), side="right").tolist()  # words in each column
        self._ending = [*map(slice, [*self._reach[1:], 0], self._reach)]  # those whose last column it is
        text = int((starts + sizes).max(initial=0))
        found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for length, places, pieces in occurrences:
            inside = places < text
            table = np.full(text, -1, dtype=np.int32)
            table[places[inside]] = pieces[inside]
            for column in range(longest - length + 1):
                at = table[starts[: self._reach[column + length]] + column]
                if column == 0 and not whole:
                    at[sizes[: len(at)] == length] = -1
                words = np.flatnonzero(at >= 0)
                found[column, length] = words, at[words]
        self._steps = sorted(found)
        self._bounds = [0, *accumulate(len(found[step][0]) for step in self._steps)]
        self.words = np.empty(self._bounds[-1], dtype=np.int64)
        self.pieces = np.empty(self._bounds[-1], dtype=np.int32)
        for step, (low, high) in zip(self._steps, pairwise(self._bounds), strict=True):
            self.words[low:high], self.pieces[low:high] = found.pop(step)  # frees memory on the way

    def keep(self, pieces: np.ndarray, words: np.ndarray | None = None) -> None:
        """Drops arcs.

        Args:
            pieces: whether to keep the arcs of each piece, bool (pieces,); those kept are numbered anew
            words: whether to keep the arcs of each word, bool (words,); default: all
        """
        kept = pieces[self.pieces]
        if words is not None:
            kept &= words[self.words]
        left = [np.count_nonzero(kept[low:high]) for low, high in pairwise(self._bounds)]
        self._bounds = [0, *accumulate(left)]
        self.words = self.words[kept]
        self.pieces = (np.cumsum(pieces, dtype=np.int32) - 1)[self.pieces[kept]]

    def _slices(self) -> Iterator[tuple[int, int, slice, slice | np.ndarray]]:
        """Yields the slices: first column, last column, arcs, and the arcs' words."""
        for (column, length), (low, high) in zip(self._steps, pairwise(self._bounds), strict=True):
            if high - low == self._reach[column + length]:  # all words
                yield column, column + length, slice(low, high), slice(high - low)
            elif high > low:
                yield column, column + length, slice(low, high), self.words[low:high]

    def _columns(self, first: float, others: float) -> list[np.ndarray]:
        """An array over the words for each column, filled with a value."""
        return [np.full(reach, others if t else first) for t, reach in enumerate(self._reach)]

    def _at_ends(self, columns: list[np.ndarray]) -> np.ndarray:
        """The value of each word in its last column, (words,)."""
        return np.concatenate([columns[t][ending] for t, ending in enumerate(self._ending)][::-1])

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The log probability of the best segmentation of each word, (words,); minus infinity if there is none.

        Args:
            scores: the log probability of each piece, (pieces,)
        """
        return self._at_ends(self._best(scores))

    def _best(self, scores: np.ndarray) -> list[np.ndarray]:
        """The log probability of the best segmentation up to each column."""
        best = self._columns(0.0, -np.inf)
        for begin, end, arcs, words in self._slices():
            found = best[begin][words] + scores[self.pieces[arcs]]
            best[end][words] = np.maximum(best[end][words], found)
        return best

    def expected(self, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
        """The expected number of occurrences of each piece, (pieces,), and the log probability of all words.

        Every word must have a segmentation.

        Args:
            scores: the log probability of each piece, (pieces,)
            counts: occurrences of each word, (words,)
        """
        best = self._best(scores)
        weights, before = self._forward(scores, best)
        total = self._at_ends(before)
        log_prob = float(counts @ (np.log(total) + self._at_ends(best)))
        flow = self._backward(weights, before, counts / total)
        return np.bincount(self.pieces, flow, len(scores)), log_prob

    def _forward(self, scores: np.ndarray, best: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The weight of each arc, (arcs,), and the sum over all segmentations up to each column."""
        before, weights = self._columns(1.0, 0.0), scores[self.pieces]
        for begin, end, arcs, words in self._slices():
            weights[arcs] += best[begin][words] - best[end][words]
            np.exp(weights[arcs], out=weights[arcs])
            before[end][words] += before[begin][words] * weights[arcs]
        return weights, before

    def _backward(self, weights: np.ndarray, before: list[np.ndarray], last: np.ndarray) -> np.ndarray:
        """The expected number of times that each arc is taken, (arcs,), which overwrites its weight.

        Args:
            weights: as `_forward` returns them
            before: as `_forward` returns them
            last: occurrences of each word, divided by the sum over all of its segmentations, (words,)
        """
        after = self._columns(0.0, 0.0)
        for column, ending in zip(after, self._ending, strict=True):
            column[ending] = last[ending]
        for begin, end, arcs, words in reversed([*self._slices()]):
            weights[arcs] *= after[end][words]
            after[begin][words] += weights[arcs]
            weights[arcs] *= before[begin][words]
        return weights
