"""Lengths: a histogram of the lengths of documents."""

from typing import Any

import numpy as np


class Lengths:
    """A histogram of lengths with eight bins an octave, and the extremes."""

    def __init__(self) -> None:
        self.shortest: int | None = None
        self.longest = 0
        self._counts = [0] * (8 * 64)

    def add(self, length: int) -> None:
        """Counts a length."""
        self.shortest = length if self.shortest is None else min(length, self.shortest)
        self.longest = max(length, self.longest)
        octave = max(length, 1).bit_length() - 1
        self._counts[8 * octave + (max(length, 1) << 3 >> octave & 7)] += 1

    def bins(self, most: int = 16) -> list[tuple[int, int, int]]:
        """(from, to, documents) of adjacent bins from the shortest to the longest, at most `most` unless it is small.

        Each bin is wider than the last by a constant factor, the smallest of 2^(1/8), 2^(1/4), ... that gives few
        enough.
        """
        used = [place for place, count in enumerate(self._counts) if count]
        found: list[tuple[int, int, int]] = []
        for width in (1, 2, 4, 8, 16, 32) if used else ():
            places = range(used[0] // width * width, used[-1] + 1, width)
            bins = [(_edge(i), _edge(i + width) - 1, sum(self._counts[i : i + width])) for i in places]
            found = [each for each in bins if each[0] <= each[1]]
            if len(found) <= most:
                break
        return found

    def quantile(self, share: float) -> int:
        """The length that a share of the documents does not exceed, rounded up by at most an eighth."""
        counts = np.cumsum(self._counts)
        place = int(np.searchsorted(counts, share * counts[-1]))
        return min(_edge(place + 1) - 1, self.longest)

    def to_dict(self) -> dict[str, Any]:
        """The extremes, the median and the bins."""
        bins = [{"from": low, "to": high, "documents": count} for low, high, count in self.bins()]
        return {"shortest": self.shortest, "median": self.quantile(0.5), "longest": self.longest, "bins": bins}


def _edge(place: int) -> int:
    """The smallest length of a bin of `Lengths`: (1 + eighths / 8) x 2^octave, rounded up."""
    octave, eighths = divmod(place, 8)
    return -(-(8 + eighths << octave) // 8)
