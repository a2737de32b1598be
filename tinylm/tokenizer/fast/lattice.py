"""All segmentations of many words at once: sums, expected counts and best segmentations.

An arc is a piece at one place in a word. A segmentation is a path of arcs from the beginning of the word to its end.
`textbook_unigram` walks through one word after another; here all words take the same step together. Words are ordered
by length, longest first, and positions are numbered column by column, so that the words that reach a column are its
first ones:

    characters read    0   1   2   3   4
    hugs               0   3   6   8  10
    hug                1   4   7   9
    hu                 2   5

Arcs are sorted by begin, then by length. Those that begin in one column and have the same length form a slice. They
begin at different positions, and all end the same number of positions further (`hu` in all three words: 6), so that one
step of the forward algorithm is

    before[begins + shift] += before[begins] * weights

Probabilities are multiplied, rather than their logarithms added, which would take several times as long. The weight of
an arc is its probability divided by the factor between the best segmentations up to its begin and up to its end.
Nothing can then underflow or overflow: `before` lies between 1 and the number of segmentations. The factors cancel in
every ratio.
"""

from collections.abc import Sequence

import numpy as np

LONGEST = 256  # characters of a word: 2^256 segmentations are far from the largest float64, 2^1024

Occurrences = Sequence[tuple[int, np.ndarray, np.ndarray]]  # a length; positions in the text; the piece at each


class Lattice:
    """The arcs of words, which are intervals of a text.

    Args:
        starts: where each word begins in the text, int (words,)
        sizes: characters of each word, at most `LONGEST`, in descending order, int (words,)
        occurrences: for each length of pieces, where in the text they occur; arcs that do not fit in a word are left
            out
        whole: whether an arc may be the whole word

    Attributes:
        pieces: the piece of each arc, int32 (arcs,)
        begins: the position at which each arc begins, int32 (arcs,)
        last: the position at which each word ends, (words,)
    """

    def __init__(self, starts: np.ndarray, sizes: np.ndarray, occurrences: Occurrences, whole: bool = True) -> None:
        longest = int(sizes.max(initial=0))
        reach = np.searchsorted(-sizes, -np.arange(longest + 1), side="right")  # words that reach each column
        self._first = np.append(0, np.cumsum(reach))  # position of the longest word in each column
        self.last = self._first[sizes] + np.arange(len(sizes))
        found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for length, places, pieces in occurrences:
            table = np.full(int(max(places.max(initial=0), starts.max(initial=0) + longest)) + 1, -1, dtype=np.int32)
            table[places] = pieces
            for column in range(longest - length + 1):
                at = table[starts[: reach[column + length]] + column]
                if column == 0 and not whole:
                    at[sizes[: len(at)] == length] = -1
                words = np.flatnonzero(at >= 0)
                found[column, length] = words.astype(np.int32) + np.int32(self._first[column]), at[words]
        slices = sorted(found)
        self._shifts = [int(self._first[column + length] - self._first[column]) for column, length in slices]
        self._bounds = np.append(0, np.cumsum([len(found[each][0]) for each in slices])).astype(np.int64)
        empty = np.zeros(0, dtype=np.int32)
        self.begins = np.concatenate([empty, *(found[each][0] for each in slices)])
        self.pieces = np.concatenate([empty, *(found.pop(each)[1] for each in slices)])

    def _slices(self) -> list[tuple[int, int, int]]:
        bounds = self._bounds.tolist()
        return [each for each in zip(bounds, bounds[1:], self._shifts, strict=False) if each[0] < each[1]]

    def keep(self, kept: np.ndarray) -> None:
        """Drops the arcs of the pieces that are not `kept`, bool (pieces,), and renumbers the others."""
        arcs = kept[self.pieces]
        self._bounds = np.append(0, np.cumsum(arcs))[self._bounds]
        self.begins = self.begins[arcs]
        self.pieces = (np.cumsum(kept, dtype=np.int32) - 1)[self.pieces[arcs]]

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The log probability of the best segmentation up to each position, (positions,); minus infinity if none.

        Args:
            scores: the log probability of each piece, (pieces,)
        """
        best = np.full(self._first[-1], -np.inf)
        best[: len(self.last)] = 0
        for low, high, shift in self._slices():
            begins = self.begins[low:high]
            ends = begins + shift
            best[ends] = np.maximum(best[ends], best[begins] + scores[self.pieces[low:high]])
        return best

    def expected(self, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
        """The expected number of occurrences of each piece, (pieces,), and the log probability of all words.

        Args:
            scores: the log probability of each piece, (pieces,)
            counts: occurrences of each word, (words,)
        """
        best = self.best(scores)
        weights, slices = scores[self.pieces], self._slices()
        weights += best[self.begins]
        for low, high, shift in slices:
            weights[low:high] -= best[self.begins[low:high] + shift]
        weights = np.exp(weights, out=weights)
        before = np.zeros(len(best))
        before[: len(self.last)] = 1
        for low, high, shift in slices:
            begins = self.begins[low:high]
            before[begins + shift] += before[begins] * weights[low:high]
        total = before[self.last]
        log_prob = float(counts @ (np.log(total) + best[self.last]))
        after = np.zeros(len(best))
        after[self.last] = counts / total
        for low, high, shift in reversed(slices):
            begins = self.begins[low:high]
            weights[low:high] *= after[begins + shift]
            after[begins] += weights[low:high]
        weights *= before[self.begins]
        return np.bincount(self.pieces, weights, len(scores)), log_prob
