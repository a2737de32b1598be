"""Learning which pairs to merge: the training half of byte pair encoding, with NumPy.

`textbook.learn_merges` counts all pairs anew for each merge. Three observations make ten thousand merges a matter of a
second, with the same result:

1. **A pair's count can only fall.** The pair (x, y) comes into being when the younger of the two tokens is made, at all
   its places at once; after that, merges only take places away. So a count that is out of date is too high and never
   too low, and it is enough to count again when a pair comes to the top of the queue (a heap).
2. **Which places a pair had is known from then on**, so nothing is ever searched; which of them are left is one
   comparison of arrays.
3. **Most pairs are rare** and will never be merged. Those below a limit are not even entered; when the queue has no
   other pair left, the limit is lowered and all pairs are looked at again.

All different words lie in one array, one cell for a byte, with a cell between words. A token's first cell holds its id,
and its last, where that is another one, `TAG - id`, so that from any token both neighbours can be reached (Knuth's
boundary tags, The Art of Computer Programming 1, section 2.5):

    bytes     t   h   e       t   h   i   s           merged: t h -> 300, 300 e -> 301, 300 i -> 302
    cells   301   -  T301 |  302   -  T302  s  |      - and | are NOTHING, T301 is TAG - 301
"""

from collections import defaultdict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

Pair = tuple[int, int]
Places = Any  # list[int] where there are few, an int32 array where there are many
NOTHING, TAG = -1, -2
SLICE = 1 << 20  # cells that are sorted at once, which takes memory
FEW = 32  # places, for which Python's own loops are faster than NumPy's calls


class MergeLearner:
    """The words of a text while pairs are merged in them.

    A pair (left, right) is one number, left x 2^32 + right, which sorts as the pair does.

    Args:
        ids: of the different words' bytes, one word after the other, int (bytes,)
        sizes: bytes of each word, int (words,)
        counts: how often each word occurs, int (words,)
        token_bytes: the bytes of each token; new ones are appended
    """

    def __init__(self, ids: np.ndarray, sizes: np.ndarray, counts: np.ndarray, token_bytes: list[bytes]) -> None:
        ends = np.cumsum(sizes + 1)
        self._cells = np.full(ends[-1], NOTHING, dtype=np.int32)
        inside = np.ones(len(self._cells), dtype=bool)
        inside[ends - 1] = False
        self._cells[inside] = ids
        self._weights = np.repeat(counts.astype(np.min_scalar_type(counts.max())), sizes + 1)
        self._token_bytes = token_bytes
        self._ids = {piece: token for token, piece in enumerate(token_bytes)}
        self._lengths = np.array([len(piece) for piece in token_bytes], dtype=np.int32)
        self._cell, self._weight = self._cells.data, self._weights.data  # for one at a time
        self._places: dict[int, Places] = {}  # pair -> the first cells of where it is, or was
        self._queue: list[tuple[int, int]] = []  # (-count, pair)

    def learn(self, num_tokens: int) -> Iterator[Pair]:
        """Merges pairs, most frequent first, of equally frequent ones that of the smaller ids.

        Args:
            num_tokens: until there are so many tokens, or nothing is left to merge
        """
        limit = 0
        while len(self._token_bytes) < num_tokens:
            pairs = self._all_pairs()
            if not pairs:
                return
            # by Zipf's law the n-th merge has a count of about 1/n of the first one's
            most = max(count for count, _ in pairs.values())
            limit = max(1, min(limit or most, most * 4 // num_tokens) // 8)
            self._places = {pair: places for pair, (count, places) in pairs.items() if count >= limit}
            self._queue = [(-pairs[pair][0], pair) for pair in self._places]
            heapify(self._queue)
            yield from self._merge_down_to(limit, num_tokens)

    def _merge_down_to(self, limit: int, num_tokens: int) -> Iterator[Pair]:
        """Merges until no pair of that count is left, or a token is made that was there already, of other parts: its
        pairs are then not all new."""
        while self._queue and len(self._token_bytes) < num_tokens:
            count, pair = heappop(self._queue)
            left, right = pair >> 32, pair & 0xFFFFFFFF
            places = self._places.pop(pair)
            few = len(places) <= FEW
            still, merge = (self._still_few, self._merge_few) if few else (self._still_many, self._merge_many)
            places, total = still(left, right, places)
            if total == -count:
                yield left, right
                known = len(self._token_bytes)
                merge(left, right, places, limit)
                if len(self._token_bytes) == known:
                    return
            elif total >= limit:
                self._places[pair] = places
                heappush(self._queue, (-total, pair))

    def _still_many(self, left: int, right: int, places: Places) -> tuple[Places, int]:
        """The places where a pair still is, and their count."""
        still = self._cells.take(places) == left
        still &= self._cells.take(places + len(self._token_bytes[left])) == right
        places = places.compress(still)
        return places, int(np.add.reduce(self._weights.take(places), dtype=np.int64))

    def _still_few(self, left: int, right: int, places: Places) -> tuple[Places, int]:
        cells, length = self._cell, len(self._token_bytes[left])
        still = [place for place in places if cells[place] == left and cells[place + length] == right]
        return still, sum([self._weight[place] for place in still])

    def _all_pairs(self) -> dict[int, tuple[int, Places]]:
        """Pair -> (count, places), of all that there are now."""
        found: dict[int, tuple[int, Places]] = {}
        for begin in range(0, len(self._cells), SLICE):
            places = (self._cells[begin : begin + SLICE] >= 0).nonzero()[0] + begin
            left = self._cells.take(places).astype(np.int64)
            right = self._cells.take(places + self._lengths.take(left))
            both = right >= 0
            pairs = left[both] << 32 | right[both]
            for pair, count, where in self._by_pair(pairs, places[both].astype(np.int32), 1):
                before = found.get(pair, (0, ()))
                found[pair] = count + before[0], np.concatenate([before[1], where]) if before[0] else where
        return found

    def _by_pair(self, pairs: np.ndarray, places: np.ndarray, limit: int) -> Iterator[tuple[int, int, Places]]:
        """(pair, count, places) of each pair that occurs often enough.

        Args:
            pairs: int64 (n,)
            places: where each is
            limit: the lowest count
        """
        order = pairs.argsort()
        pairs, places = pairs.take(order), places.take(order)
        bounds = np.empty(len(pairs) + 1, dtype=bool)
        bounds[0] = bounds[-1] = True
        np.not_equal(pairs[1:], pairs[:-1], out=bounds[1:-1])
        bounds = bounds.nonzero()[0]
        begins, ends = bounds[:-1], bounds[1:]
        counts = np.add.reduceat(self._weights.take(places), begins, dtype=np.int64)
        often = (counts >= limit).nonzero()[0]
        for i, pair, count in zip(often.tolist(), pairs[begins[often]].tolist(), counts[often].tolist(), strict=True):
            where = places[begins[i] : ends[i]]
            yield pair, count, where.tolist() if len(where) <= FEW else where

    def _merge_many(self, left: int, right: int, places: Places, limit: int) -> None:
        """Makes a pair one token wherever it is, and enters the pairs that come into being by that."""
        length = len(self._token_bytes[left])
        places = np.sort(places)
        if left == right:
            places = _without_overlap(places, length)
        token, cells = self._token_of(left, right), self._cells
        ends = places + len(self._token_bytes[token])
        cells[places + length] = NOTHING
        cells[ends - 1] = TAG - token
        cells[places] = token

        before = cells.take(places - 1)  # the last cell of a token; before the first word that is the end, NOTHING
        there = before != NOTHING
        before = before.compress(there)
        before = np.where(before <= TAG, TAG - before, before).astype(np.int64)
        pairs_before, places_before = before << 32 | token, places.compress(there) - self._lengths.take(before)

        after = cells.take(ends).astype(np.int64)
        there = after >= 0
        there[:-1] &= ends[:-1] != places[1:]  # two new tokens side by side were found from the second one
        pairs_after, places_after = token << 32 | after.compress(there), places.compress(there)

        pairs = np.concatenate([pairs_before, pairs_after])
        if len(pairs):
            places = np.concatenate([places_before, places_after])
            for pair, count, where in self._by_pair(pairs, places, limit):
                self._enter(pair, count, where)

    def _merge_few(self, left: int, right: int, places: Places, limit: int) -> None:
        """As `_merge_many`, place by place: a call of NumPy takes as long as Python takes for twenty places."""
        cells, token_bytes, token = self._cell, self._token_bytes, self._token_of(left, right)
        length, width = len(token_bytes[left]), len(token_bytes[token])
        merged = []
        for place in sorted(places):
            if cells[place] == left and cells[place + length] == right:  # it may overlap with the one before
                cells[place + length] = NOTHING
                cells[place + width - 1] = TAG - token
                cells[place] = token
                merged.append(place)
        found: dict[int, list[int]] = defaultdict(list)
        for place, following in zip(merged, [*merged[1:], -1], strict=True):
            before, after = cells[place - 1], cells[place + width]
            if before != NOTHING:
                before = TAG - before if before <= TAG else before
                found[before << 32 | token].append(place - len(token_bytes[before]))
            if after >= 0 and following != place + width:
                found[token << 32 | after].append(place)
        for pair, where in found.items():
            count = sum([self._weight[place] for place in where])
            if count >= limit:
                self._enter(pair, count, where)

    def _enter(self, pair: int, count: int, places: Places) -> None:
        self._places[pair] = places
        heappush(self._queue, (-count, pair))

    def _token_of(self, left: int, right: int) -> int:
        """The token that a pair becomes: a new one, or that which has these bytes already."""
        piece = self._token_bytes[left] + self._token_bytes[right]
        token = self._ids.setdefault(piece, len(self._token_bytes))
        if token == len(self._token_bytes):
            self._token_bytes.append(piece)
            if token == len(self._lengths):
                self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
            self._lengths[token] = len(piece)
        return token


def _without_overlap(places: np.ndarray, length: int) -> np.ndarray:
    """Of the ascending places where a token stands before itself, those that are merged: in a row of them, where each
    pair overlaps with the next, every other one."""
    follows = np.zeros(len(places), dtype=bool)
    follows[1:] = places[1:] == places[:-1] + length
    index = np.arange(len(places))
    row = np.maximum.accumulate(np.where(follows, 0, index))  # where the row of each begins
    return places[(index - row) % 2 == 0]
