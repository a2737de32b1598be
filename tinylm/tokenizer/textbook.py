"""Byte pair encoding in its simplest form: short and slow. Read this first.

Only tests use it, as the reference for the fast versions in `learning.py` and `merging.py`.

Training (Gage 1994; Sennrich et al. 2016): each word is a list of tokens, initially its bytes. Repeatedly, the most
frequent pair of neighbours becomes a new token in all words.

    aab aab abc       (a, a) 2   (a, b) 3   (b, c) 1        merge (a, b), call it 256
    a256 a256 256c    (a, 256) 2   (256, c) 1               merge (a, 256), call it 257
    257 257 256c

Encoding applies the learned merges to a new word, in the same order.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

Pair = tuple[int, int]
Token = TypeVar("Token")


def learn_merges(counts: dict[tuple[int, ...], int], num_merges: int, token_bytes: list[bytes]) -> list[Pair]:
    """Learns merges from word counts, most frequent pair first; ties go to the smaller ids.

    Args:
        counts: word, as a tuple of tokens -> number of occurrences
        num_merges: maximum number of merges; fewer if every word becomes one token first
        token_bytes: the bytes of each token; new tokens are appended. A pair whose bytes are already a token becomes
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
        merged: pair -> merged token, in the order in which the pairs were learned
    """
    while True:
        neighbours = set(pairwise(word))
        pair = next((pair for pair in merged if pair in neighbours), None)
        if pair is None:
            return word
        word = merge_pair(word, pair, merged[pair])


def merge_pair(word: Sequence[Token], pair: tuple[Token, Token], token: Token) -> list[Token]:
    """The word with every occurrence of the pair, from left to right, replaced by a token."""
    result: list[Token] = []
    i = 0
    while i < len(word):
        found = tuple(word[i : i + 2]) == pair
        result.append(token if found else word[i])
        i += 2 if found else 1
    return result
