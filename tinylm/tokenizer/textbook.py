"""Byte pair encoding as one would write it on a blackboard: short, slow, and plainly right.

Nothing in tinylm uses these two functions but its tests, which hold the fast ones of `learning.py` and `merging.py` to
them. Read them first.

Training (Gage 1994; Sennrich et al. 2016): each word is a list of tokens, at first its bytes. Again and again the most
frequent pair of neighbours becomes a new token, in all words.

    aab aab abc       (a, a) 2   (a, b) 3   (b, c) 1        merge (a, b), call it 256
    a256 a256 256c    (a, 256) 2   (256, c) 1               merge (a, 256), call it 257
    257 257 256c

Encoding repeats on a new word what was learned, in the same order.
"""

from collections import Counter
from itertools import pairwise

Pair = tuple[int, int]


def learn_merges(counts: dict[tuple[int, ...], int], num_merges: int, token_bytes: list[bytes]) -> list[Pair]:
    """The merges that a text teaches, most frequent pair first; of equally frequent ones that of the smaller ids.

    Args:
        counts: word, as its tokens -> how often it occurs
        num_merges: how many to learn at most; fewer if every word is one token before that
        token_bytes: the bytes of each token; new ones are appended. A pair whose bytes are a token already becomes
            that token.
    """
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pairs = Counter[Pair]()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        piece = token_bytes[best[0]] + token_bytes[best[1]]
        if piece not in token_bytes:
            token_bytes.append(piece)
        merges.append(best)
        merged = Counter[tuple[int, ...]]()
        for word, count in counts.items():
            merged[tuple(merge_pair(word, best, token_bytes.index(piece)))] += count
        counts = merged
    return merges


def merge_word(word: list[int], merged: dict[Pair, int]) -> list[int]:
    """The tokens of a word.

    Args:
        word: the tokens of its bytes
        merged: pair -> the token that it becomes, in the order in which pairs were learned
    """
    while True:
        neighbours = set(pairwise(word))
        pair = next((pair for pair in merged if pair in neighbours), None)
        if pair is None:
            return word
        word = merge_pair(word, pair, merged[pair])


def merge_pair(word: list[int] | tuple[int, ...], pair: Pair, token: int) -> list[int]:
    """A word in which a pair is one token, wherever it occurs, from left to right."""
    result: list[int] = []
    place = 0
    while place < len(word):
        found = tuple(word[place : place + 2]) == pair
        result.append(token if found else word[place])
        place += 2 if found else 1
    return result
