"""Byte pair encoding: learning merges from a text, and encoding with them (chapter 8)."""

from itertools import pairwise

Word = tuple[int, ...]
Pair = tuple[int, int]


def count_pairs(words: dict[Word, int]) -> dict[Pair, int]:
    """Counts each pair of neighbours in all words together.

    Args:
        words: word, as a tuple of tokens -> number of its occurrences in the text

    Returns:
        pair of tokens -> number

    Example: {(1, 1, 2): 3, (1, 2): 5} has (1, 1) 3 times and (1, 2) 8 times.
    """
    counts: dict[Pair, int] = {}
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + count
    return counts


def merge(word: Word, pair: Pair, token: int) -> Word:
    """Replaces every occurrence of a pair by a token, from left to right.

    Example: merge((1, 1, 1, 2), (1, 1), 9) is (9, 1, 2).
    """
    merged: list[int] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(token)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def learn(words: dict[Word, int], num_merges: int) -> list[Pair]:
    """Learns merges: the most frequent pair becomes a new token in all words, again and again.

    Of equally frequent pairs the smallest is taken: (1, 5) before (1, 6), and both before (2, 3). The words consist of
    bytes, 0 to 255, so the new tokens are 256, 257 and so on.

    Args:
        words: word, as a tuple of bytes -> number of its occurrences
        num_merges: most merges; there are fewer if no pair is left

    Returns:
        the merged pairs, in order
    """
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := count_pairs(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        token = 256 + len(merges)
        merges.append(best)
        words = {merge(word, best, token): count for word, count in words.items()}
    return merges


def encode(word: bytes, merges: list[Pair]) -> list[int]:
    """The tokens of a word: its bytes, after all merges in the order in which they were learned.

    Example: with the merges (98, 99) and (97, 98), b"abc" is [97, 256]: "bc" is merged first, and no "ab" is left.
    """
    tokens = tuple(word)
    for i, pair in enumerate(merges):
        tokens = merge(tokens, pair, 256 + i)
    return list(tokens)


def decode(tokens: list[int], merges: list[Pair]) -> bytes:
    """The bytes of tokens. Those of a merged token are the bytes of its pair, one after the other.

    Example: with the merges (97, 98) and (256, 99), [257, 100] is b"abcd".
    """
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[token] for token in tokens)
