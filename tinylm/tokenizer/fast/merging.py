"""BPE encoding: merges the bytes of words into tokens.

As long as a word has a learned pair of neighbours, the leftmost occurrence of the pair learned first is merged
(`textbook.merge_word`). Two fast implementations are tested against that definition: one for a single word of any
length, one for thousands of short words at once. A third leaves out merges at random (BPE dropout).
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from tinylm.tokenizer.fast.arrays import KeyTable

Pair = tuple[int, int]
NEVER = 2**31 - 1  # the rank of a pair that was not learned


def merge_word(ids: list[int], merged: dict[Pair, Pair], joined: dict[int, Pair] | None = None) -> list[int]:
    """Encodes one word of n bytes in O(n log n): a heap of (rank, position) over a linked list of tokens.

    Args:
        ids: the byte tokens of the word; modified in place
        merged: pair -> (rank, merged token)
        joined: filled with merged token -> the last pair of neighbours that could make it
    """
    if joined is not None:
        joined.update((merged[pair][1], pair) for pair in pairwise(ids) if pair in merged)
    after = [*range(1, len(ids)), -1]  # position of the next token, -1 at the end
    before = list(range(-1, len(ids) - 1))
    queue = [(merged[pair][0], position) for position, pair in enumerate(pairwise(ids)) if pair in merged]
    heapify(queue)
    while queue:
        rank, position = heappop(queue)
        following = after[position]
        if ids[position] < 0 or following < 0 or merged.get((ids[position], ids[following]), (-1,))[0] != rank:
            continue  # stale: one of the two was merged with another token
        ids[position] = merged[ids[position], ids[following]][1]
        ids[following] = -1
        after[position] = after[following]
        if after[position] >= 0:
            before[after[position]] = position
        for left in (before[position], position):
            if left >= 0 and after[left] >= 0 and (pair := (ids[left], ids[after[left]])) in merged:
                heappush(queue, (merged[pair][0], left))
                if joined is not None:
                    joined[merged[pair][1]] = pair
    return [token for token in ids if token >= 0]


def merge_some(ids: list[int], merged: dict[Pair, Pair], dropout: float, random: "np.random.Generator") -> list[int]:
    """Encodes one word with BPE dropout (Provilkov et al. 2020), in O(n^2).

    Before each merge, every pair that could be merged is left out with the probability `dropout`, anew each time; of
    the others the leftmost occurrence of the pair learned first is merged. If all are left out, the word is finished.

    Args:
        ids: the byte tokens of the word
        merged: pair -> (rank, merged token)
        dropout: 0 gives the ids of `merge_word`, 1 leaves the bytes
        random: source of random numbers
    """
    ids = list(ids)
    while True:
        found = [(merged[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in merged]
        kept = [each for each, draw in zip(found, random.random(len(found)), strict=True) if draw >= dropout]
        if not kept:
            return ids
        (_, token), place = min(kept)
        ids[place : place + 2] = [token]


class MergeTable:
    """Vectorized `merge_word` for many words.

    Args:
        merged: pair -> (rank, merged token), ordered by rank 0, 1, 2, ...
    """

    def __init__(self, merged: dict[Pair, Pair]) -> None:
        pairs = np.array([*merged], dtype=np.uint64).reshape(-1, 2)
        self._table = KeyTable()
        self._table.add(pairs[:, 0] << np.uint64(32) | pairs[:, 1])
        self._tokens = np.array([token for _, token in merged.values()], dtype=np.int32)

    def merge_words(self, ids: np.ndarray, sizes: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Encodes many words in rounds; each round merges one pair in every unfinished word.

        Args:
            ids: the byte tokens of the words, concatenated, int32 (bytes,)
            sizes: length of each word in bytes, at least 1, int64 (words,)

        Yields:
            the words finished in a round: their indices, their tokens, concatenated, and the number of tokens of each
        """
        words = np.arange(len(sizes))
        begins = np.cumsum(sizes) - sizes
        ranks = np.append(self._ranks(ids[:-1], ids[1:]), NEVER)  # of the pair that begins at each token
        ranks[begins + sizes - 1] = NEVER
        while len(words):
            # each word's lowest rank and its leftmost position
            firsts = np.minimum.reduceat(ranks << 32 | np.arange(len(ranks)), begins)
            merge = firsts >> 32 < NEVER
            keep = np.repeat(merge, sizes)
            yield words[~merge], ids[~keep], sizes[~merge]
            positions = firsts[merge] & 0xFFFFFFFF
            ids[positions] = self._tokens[firsts[merge] >> 32]
            keep[positions + 1] = False
            positions = (np.cumsum(keep) - 1)[positions]
            words, sizes, ids, ranks = words[merge], sizes[merge] - 1, ids[keep], ranks[keep]
            begins = np.cumsum(sizes) - sizes
            ranks[positions] = NEVER
            changed = np.concatenate([positions[positions > begins] - 1, positions[positions < begins + sizes - 1]])
            ranks[changed] = self._ranks(ids[changed], ids[changed + 1])

    def _ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the ranks of pairs, or NEVER, int64 (n,)."""
        ranks = self._table.find(left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)).astype(np.int64)
        ranks[ranks < 0] = NEVER
        return ranks
