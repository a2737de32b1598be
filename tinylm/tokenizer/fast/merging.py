"""Merging the bytes of words into tokens: the encoding half of byte pair encoding.

As long as two neighbours are a pair that was learned, the pair that was learned first (of its occurrences the
leftmost) becomes one token. `textbook.merge_word` says just that. Here are the two fast ways, which tests hold to it:
for one word of any length, and for thousands of short words at once.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from tinylm.tokenizer.fast.arrays import KeyTable

Pair = tuple[int, int]
NEVER = 2**31 - 1  # the rank of a pair that is not merged


def merge_word(ids: list[int], merged: dict[Pair, Pair]) -> list[int]:
    """The tokens of one word, in n log n steps for n bytes: a heap of (rank, place) over a linked list.

    Args:
        ids: of the word's bytes; changed in place
        merged: pair -> (rank, token that it becomes)
    """
    after = [*range(1, len(ids)), -1]  # the place of the next token, -1 at the end
    before = list(range(-1, len(ids) - 1))
    todo = [(merged[pair][0], place) for place, pair in enumerate(pairwise(ids)) if pair in merged]
    heapify(todo)
    while todo:
        rank, place = heappop(todo)
        following = after[place]
        if ids[place] < 0 or following < 0 or merged.get((ids[place], ids[following]), (-1,))[0] != rank:
            continue  # one of the two was merged otherwise meanwhile
        ids[place] = merged[ids[place], ids[following]][1]
        ids[following] = -1
        after[place] = after[following]
        if after[place] >= 0:
            before[after[place]] = place
        for left in (before[place], place):
            if left >= 0 and after[left] >= 0 and (ids[left], ids[after[left]]) in merged:
                heappush(todo, (merged[ids[left], ids[after[left]]][0], left))
    return [token for token in ids if token >= 0]


class MergeTable:
    """What `merge_word` does, for many words at once.

    Args:
        merged: pair -> (rank, token that it becomes), in the order of the ranks 0, 1, 2 ...
    """

    def __init__(self, merged: dict[Pair, Pair]) -> None:
        pairs = np.array([*merged], dtype=np.uint64).reshape(-1, 2)
        self._table = KeyTable()
        self._table.add(pairs[:, 0] << np.uint64(32) | pairs[:, 1])
        self._tokens = np.array([token for _, token in merged.values()], dtype=np.int32)

    def merge_words(self, ids: np.ndarray, sizes: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The tokens of many words: in each round one pair of each word is merged, in all words together.

        Args:
            ids: of the words' bytes, one word after the other, int32
            sizes: bytes of each word, int64 (words,), none of them 0

        Yields:
            words that are finished: their places among the given ones, their tokens one after the other, and the
            number of tokens of each
        """
        words = np.arange(len(sizes))
        begins = np.cumsum(sizes) - sizes
        ranks = np.append(self._ranks(ids[:-1], ids[1:]), NEVER)  # of each token with the next one
        ranks[begins + sizes - 1] = NEVER
        while len(words):
            firsts = np.minimum.reduceat(ranks << 32 | np.arange(len(ranks)), begins)  # the first pair, and its place
            merge = firsts >> 32 < NEVER
            keep = np.repeat(merge, sizes)
            yield words[~merge], ids[~keep], sizes[~merge]
            places = firsts[merge] & 0xFFFFFFFF
            ids[places] = self._tokens[firsts[merge] >> 32]
            keep[places + 1] = False
            places = (np.cumsum(keep) - 1)[places]
            words, sizes, ids, ranks = words[merge], sizes[merge] - 1, ids[keep], ranks[keep]
            begins = np.cumsum(sizes) - sizes
            ranks[places] = NEVER
            changed = np.concatenate([places[places > begins] - 1, places[places < begins + sizes - 1]])
            ranks[changed] = self._ranks(ids[changed], ids[changed + 1])

    def _ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The ranks of pairs, int64 (n,)."""
        ranks = self._table.find(left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)).astype(np.int64)
        ranks[ranks < 0] = NEVER
        return ranks
