"""BPE training with NumPy: learns the merges.

`textbook.learn_merges` recounts all pairs for every merge. Three observations bring ten thousand merges down to about a
second, with the same result:

1. **Counts only fall.** All occurrences of a pair (x, y) appear at once, when the newer of its two tokens is created.
   Later merges can only remove some. A stale count is therefore an upper bound, and a pair needs recounting only when
   it reaches the top of the priority queue (a heap).
2. **Positions are recorded.** The positions of a pair are stored when it appears, so nothing is ever searched. One
   array comparison finds those that remain.
3. **Most pairs are rare** and never merged. Pairs below a count limit are left out of the queue. When the queue is
   empty, the limit is lowered and all pairs are counted again.

All distinct words lie in one array, with one cell per byte and a separator cell after each word. A token's first cell
holds its id. Its last cell, if it has more than one, holds `TAG - id`, so that both neighbours can be reached from any
token (Knuth's boundary tags, The Art of Computer Programming 1, section 2.5):

    bytes     t   h   e       t   h   i   s           merges: t h -> 300, 300 e -> 301, 300 i -> 302
    cells   301   -  T301 |  302   -  T302  s  |      - and | are NOTHING, T301 is TAG - 301
"""

from collections import defaultdict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

Pair = tuple[int, int]
Positions = Any  # list[int] if at most FEW, otherwise an int32 array
NOTHING, TAG = -1, -2
SLICE = 1 << 20  # cells sorted at once; bounds the memory
FEW = 32  # up to this many positions, a Python loop is faster than NumPy calls


class MergeLearner:
    """Learns merges from counted words.

    A pair (left, right) is encoded as the integer left x 2^32 + right, which preserves the order of pairs.

    Args:
        ids: the byte tokens of the distinct words, concatenated, int (bytes,)
        sizes: length of each word in bytes, int (words,)
        counts: number of occurrences of each word, int (words,)
        token_bytes: the bytes of each token; new tokens are appended. Instead of bytes, any other sequence that
            identifies a token will do, with one item per cell.
    """

    def __init__(self, ids: np.ndarray, sizes: np.ndarray, counts: np.ndarray, token_bytes: list[Any]) -> None:
        ends = np.cumsum(sizes + 1)
        self._cells = np.full(ends[-1], NOTHING, dtype=np.int32)
        inside = np.ones(len(self._cells), dtype=bool)
        inside[ends - 1] = False
        self._cells[inside] = ids
        self._weights = np.repeat(counts.astype(np.min_scalar_type(counts.max())), sizes + 1)
        self._token_bytes = token_bytes
        self._ids = {piece: token for token, piece in enumerate(token_bytes)}
        self._lengths = np.array([len(piece) for piece in token_bytes], dtype=np.int32)
        self._cell, self._weight = self._cells.data, self._weights.data  # memoryviews: faster for single elements
        self._positions: dict[int, Positions] = {}  # pair -> first cells of its current and former occurrences
        self._queue: list[tuple[int, int]] = []  # (-count, pair)

    def learn(self, num_tokens: int) -> Iterator[Pair]:
        """Yields each merge as it is made: the most frequent pair first, ties in favour of smaller ids.

        Args:
            num_tokens: vocabulary size at which to stop; learning ends earlier if no pair is left
        """
        limit = 0
        while len(self._token_bytes) < num_tokens:
            pairs = self._all_pairs()
            if not pairs:
                return
            # Zipf's law: the count of the n-th merge is about 1/n of the first one's
            most = max(count for count, _ in pairs.values())
            limit = max(1, min(limit or most, most * 4 // num_tokens) // 8)
            self._positions = {pair: positions for pair, (count, positions) in pairs.items() if count >= limit}
            self._queue = [(-pairs[pair][0], pair) for pair in self._positions]
            heapify(self._queue)
            yield from self._merge_down_to(limit, num_tokens)

    def _merge_down_to(self, limit: int, num_tokens: int) -> Iterator[Pair]:
        """Merges until no pair of at least `limit` is left in the queue.

        Stops early if a merge yields an existing token (the same bytes from other parts): the pairs of that token are
        not all new, so all pairs must be counted again.
        """
        while self._queue and len(self._token_bytes) < num_tokens:
            count, pair = heappop(self._queue)
            left, right = pair >> 32, pair & 0xFFFFFFFF
            positions = self._positions.pop(pair)
            few = len(positions) <= FEW
            recount, merge = (self._recount_few, self._merge_few) if few else (self._recount_many, self._merge_many)
            positions, total = recount(left, right, positions)
            if total == -count:
                yield left, right
                known = len(self._token_bytes)
                merge(left, right, positions, limit)
                if len(self._token_bytes) == known:
                    return
            elif total >= limit:
                self._positions[pair] = positions
                heappush(self._queue, (-total, pair))

    def _recount_many(self, left: int, right: int, positions: Positions) -> tuple[Positions, int]:
        """Returns the remaining positions of a pair, and its count."""
        remaining = self._cells.take(positions) == left
        remaining &= self._cells.take(positions + len(self._token_bytes[left])) == right
        positions = positions.compress(remaining)
        return positions, int(np.add.reduce(self._weights.take(positions), dtype=np.int64))

    def _recount_few(self, left: int, right: int, positions: Positions) -> tuple[Positions, int]:
        cells, length = self._cell, len(self._token_bytes[left])
        remaining = [
            position for position in positions if cells[position] == left and cells[position + length] == right
        ]
        return remaining, sum([self._weight[position] for position in remaining])

    def _all_pairs(self) -> dict[int, tuple[int, Positions]]:
        """Returns all current pairs: pair -> (count, positions)."""
        found: dict[int, tuple[int, Positions]] = {}
        for begin in range(0, len(self._cells), SLICE):
            positions = (self._cells[begin : begin + SLICE] >= 0).nonzero()[0] + begin
            left = self._cells.take(positions).astype(np.int64)
            right = self._cells.take(positions + self._lengths.take(left))
            both = right >= 0
            pairs = left[both] << 32 | right[both]
            for pair, count, where in self._by_pair(pairs, positions[both].astype(np.int32), 1):
                before = found.get(pair, (0, ()))
                found[pair] = count + before[0], np.concatenate([before[1], where]) if before[0] else where
        return found

    def _by_pair(self, pairs: np.ndarray, positions: np.ndarray, limit: int) -> Iterator[tuple[int, int, Positions]]:
        """Groups occurrences by pair and yields (pair, count, positions).

        Args:
            pairs: the pair at each position, int64 (n,)
            positions: first cells, (n,)
            limit: pairs with a lower count are skipped
        """
        order = pairs.argsort()
        pairs, positions = pairs.take(order), positions.take(order)
        bounds = np.empty(len(pairs) + 1, dtype=bool)
        bounds[0] = bounds[-1] = True
        np.not_equal(pairs[1:], pairs[:-1], out=bounds[1:-1])
        bounds = bounds.nonzero()[0]
        begins, ends = bounds[:-1], bounds[1:]
        counts = np.add.reduceat(self._weights.take(positions), begins, dtype=np.int64)
        often = (counts >= limit).nonzero()[0]
        for i, pair, count in zip(often.tolist(), pairs[begins[often]].tolist(), counts[often].tolist(), strict=True):
            where = positions[begins[i] : ends[i]]
            yield pair, count, where.tolist() if len(where) <= FEW else where

    def _merge_many(self, left: int, right: int, positions: Positions, limit: int) -> None:
        """Replaces every occurrence of a pair by one token, and queues the new pairs on either side of it."""
        length = len(self._token_bytes[left])
        positions = np.sort(positions)
        if left == right:
            positions = _without_overlap(positions, length)
        token, cells = self._token_of(left, right), self._cells
        ends = positions + len(self._token_bytes[token])
        cells[positions + length] = NOTHING
        cells[ends - 1] = TAG - token
        cells[positions] = token

        before = cells.take(positions - 1)  # last cell of the previous token; index -1 is the final separator, NOTHING
        exists = before != NOTHING
        before = before.compress(exists)
        before = np.where(before <= TAG, TAG - before, before).astype(np.int64)
        pairs_before, positions_before = before << 32 | token, positions.compress(exists) - self._lengths.take(before)

        after = cells.take(ends).astype(np.int64)
        exists = after >= 0
        exists[:-1] &= ends[:-1] != positions[1:]  # a pair of two new tokens was already found as (before, token)
        pairs_after, positions_after = token << 32 | after.compress(exists), positions.compress(exists)

        pairs = np.concatenate([pairs_before, pairs_after])
        if len(pairs):
            positions = np.concatenate([positions_before, positions_after])
            for pair, count, where in self._by_pair(pairs, positions, limit):
                self._enter(pair, count, where)

    def _merge_few(self, left: int, right: int, positions: Positions, limit: int) -> None:
        """Like `_merge_many`, in a Python loop: one NumPy call costs as much as about twenty iterations."""
        cells, token_bytes, token = self._cell, self._token_bytes, self._token_of(left, right)
        length, width = len(token_bytes[left]), len(token_bytes[token])
        merged = []
        for position in sorted(positions):
            if cells[position] == left and cells[position + length] == right:  # it may overlap with the previous one
                cells[position + length] = NOTHING
                cells[position + width - 1] = TAG - token
                cells[position] = token
                merged.append(position)
        found: dict[int, list[int]] = defaultdict(list)
        for position, following in zip(merged, [*merged[1:], -1], strict=True):
            before, after = cells[position - 1], cells[position + width]
            if before != NOTHING:
                before = TAG - before if before <= TAG else before
                found[before << 32 | token].append(position - len(token_bytes[before]))
            if after >= 0 and following != position + width:
                found[token << 32 | after].append(position)
        for pair, where in found.items():
            count = sum([self._weight[position] for position in where])
            if count >= limit:
                self._enter(pair, count, where)

    def _enter(self, pair: int, count: int, positions: Positions) -> None:
        self._positions[pair] = positions
        heappush(self._queue, (-count, pair))

    def _token_of(self, left: int, right: int) -> int:
        """Returns the token that a pair merges into: the existing token with these bytes, or a new one."""
        piece = self._token_bytes[left] + self._token_bytes[right]
        token = self._ids.setdefault(piece, len(self._token_bytes))
        if token == len(self._token_bytes):
            self._token_bytes.append(piece)
            if token == len(self._lengths):
                self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
            self._lengths[token] = len(piece)
        return token


def _without_overlap(positions: np.ndarray, length: int) -> np.ndarray:
    """Selects which occurrences of a pair (x, x) are merged: every other one in each run of overlapping occurrences.

    `positions` is sorted; `length` is the length of x in bytes.
    """
    follows = np.zeros(len(positions), dtype=bool)
    follows[1:] = positions[1:] == positions[:-1] + length
    index = np.arange(len(positions))
    run = np.maximum.accumulate(np.where(follows, 0, index))  # index where each one's run begins
    return positions[(index - run) % 2 == 0]
