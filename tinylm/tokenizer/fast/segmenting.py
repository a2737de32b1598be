"""Segmentation of many words at once by the unigram model: the most likely one (Viterbi), or one drawn at random.

`segmentation.best_path` handles one word after the other. Here all pieces in all words are found first, by walking a
trie from every character in step; each occurrence is an arc from its first character to the one after its last:

    h  u  g  s          arcs:  h  hu  hug    u  ug    g    s          from character 0, 1, 2 and 3

Then the words are segmented in step: the arcs that leave the first character of every word, those that leave the
second, and so on. No two arcs of a step end at the same place, so that each step is a few array operations.
"""

from typing import NamedTuple

import numpy as np

from tinylm.tokenizer.fast.arrays import KeyTable, slices
from tinylm.tokenizer.fast.pretokenize import BETWEEN

UNKNOWN = -1  # the piece number of a character that is not a piece


class Words(NamedTuple):
    """Words, each followed by a byte that no piece contains.

    Attributes:
        data: UTF-8 of the words, uint8 (bytes,)
        begins: offset of each word, int64 (words,)
        ends: offset of the byte that follows it, int64 (words,)
    """

    data: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def words_of(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> Words:
    """The words `data[starts[i] : starts[i] + sizes[i]]` of a text, uint8 (bytes,); sizes are at least 1."""
    ends = np.cumsum(sizes + 1) - 1
    spread = np.full(len(sizes) + int(sizes.sum()), BETWEEN, dtype=np.uint8)
    inside = np.ones(len(spread), dtype=bool)
    inside[ends] = False
    spread[inside] = slices(data, starts, sizes)
    return Words(spread, ends - sizes, ends)


class Arcs(NamedTuple):
    """Occurrences of pieces in words, ordered by their distance from the beginning of the word.

    Attributes:
        begins: offset of the first byte, int64 (arcs,)
        ends: offset after the last byte, int64 (arcs,)
        pieces: number of the piece, or UNKNOWN, int32 (arcs,)
        scores: log probability, float64 (arcs,)
        steps: the arcs `steps[i]` to `steps[i + 1]` begin at the same distance
    """

    begins: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray
    scores: np.ndarray
    steps: np.ndarray


class PieceTrie:
    """All pieces by their bytes, for finding them at many places at once.

    Args:
        names: the UTF-8 of each piece; distinct, not empty
        scores: log probability of each piece, float64 (pieces,)
        unknown_score: log probability of a character that is not a piece
    """

    def __init__(self, names: list[bytes], scores: np.ndarray, unknown_score: float) -> None:
        self._scores = np.append(scores, unknown_score)  # UNKNOWN is the last
        sizes = np.array([len(name) for name in names], dtype=np.int64)
        data, begins = np.frombuffer(b"".join(names), dtype=np.uint8), np.cumsum(sizes) - sizes
        self._table, self._deepest = KeyTable(), int(sizes.max(initial=1))
        nodes = np.zeros(len(names), dtype=np.int64)  # the root is 0; node i + 1 has the number i in the table
        for depth in range(self._deepest):
            longer = np.flatnonzero(sizes > depth)
            nodes[longer] = self._table.find_or_add(_keys(nodes[longer], data[begins[longer] + depth])) + 1
        self._piece = np.full(self._table.size + 1, UNKNOWN, dtype=np.int32)
        self._piece[nodes] = np.arange(len(names))
        every = np.arange(256)
        self._first = (self._table.find(_keys(np.zeros(256, dtype=np.int64), every)) + 1).astype(np.int64)

    def arcs(self, words: Words) -> Arcs:
        """All occurrences of pieces in words, and all characters that are not pieces."""
        data = np.append(words.data, np.full(self._deepest, BETWEEN, dtype=np.uint8))
        characters = np.flatnonzero(((words.data & 0xC0) != 0x80) & (words.data != BETWEEN))
        at, nodes = characters, self._first[data[characters]]
        found = []
        for depth in range(1, self._deepest + 1):
            at, nodes = at[nodes > 0], nodes[nodes > 0]
            pieces = self._piece[nodes]
            whole = pieces != UNKNOWN
            found.append((at[whole], at[whole] + depth, pieces[whole]))
            if depth == self._deepest or not len(at):
                break
            nodes = self._table.find(_keys(nodes, data[at + depth])).astype(np.int64) + 1
        begins, ends, pieces = map(np.concatenate, zip(*found, strict=True))
        known = np.zeros(len(data), dtype=bool)
        known[begins[ends - begins == character_sizes(data[begins])]] = True
        others = characters[~known[characters]]
        begins, ends = np.append(begins, others), np.append(ends, others + character_sizes(data[others]))
        pieces = np.append(pieces, np.full(len(others), UNKNOWN, dtype=np.int32))
        sizes = words.ends - words.begins + 1
        distance = (np.arange(len(words.data)) - np.repeat(words.begins, sizes))[begins]
        narrow = distance.astype(np.uint16) if distance.max(initial=0) < 1 << 16 else distance  # sorted by radix
        order = np.argsort(narrow, kind="stable")
        counts = np.bincount(distance)
        steps = np.append(0, np.cumsum(counts[counts > 0]))
        return Arcs(begins[order], ends[order], pieces[order], self._scores[pieces[order]], steps)


def _keys(nodes: np.ndarray, following: np.ndarray) -> np.ndarray:
    return nodes.astype(np.uint64) << np.uint64(8) | following.astype(np.uint64)


_SIZES = np.repeat(np.array([1, 2, 3, 4]), [0xC0, 0x20, 0x10, 0x10])


def character_sizes(first: np.ndarray) -> np.ndarray:
    """Bytes of the UTF-8 characters with these first bytes, int64 (n,)."""
    return _SIZES[first]


def best_arcs(words: Words, arcs: Arcs) -> tuple[np.ndarray, np.ndarray]:
    """The most likely segmentation up to each offset; of equally likely ones the first, as in `Pieces.best_path`.

    Returns:
        its last arc, int64 (bytes,), and its log probability, float64 (bytes,)
    """
    best = np.full(len(words.data), -np.inf)
    best[words.begins] = 0
    last = np.zeros(len(best), dtype=np.int64)
    for first, after in zip(arcs.steps[:-1].tolist(), arcs.steps[1:].tolist(), strict=True):
        ends = arcs.ends[first:after]
        found = best[arcs.begins[first:after]] + arcs.scores[first:after]
        better = np.flatnonzero(found > best[ends])
        best[ends[better]] = found[better]
        last[ends[better]] = first + better
    return last, best


def margins(arcs: Arcs, last: np.ndarray, best: np.ndarray, chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The margin of each word's closest decision between two segmentations, in nats, float64 (words,).

    Args:
        arcs: the arcs of the words
        last: as from `best_arcs`
        best: as from `best_arcs`
        chosen: as from `trace`
        counts: as from `trace`, at least 1 each
    """
    others = np.ones(len(arcs.begins), dtype=bool)
    others[last[arcs.ends]] = False
    second = np.full(len(best), -np.inf)
    np.maximum.at(second, arcs.ends[others], (best[arcs.begins] + arcs.scores)[others])
    ends = arcs.ends[chosen]
    return np.minimum.reduceat(best[ends] - second[ends], np.cumsum(counts) - counts)


def drawn_arcs(words: Words, arcs: Arcs, alpha: float, random: "np.random.Generator") -> np.ndarray:
    """The last arc of a segmentation drawn at random, up to each offset, int64 (bytes,).

    Forward filtering, backward sampling: an arc is drawn with the probability of all segmentations that end with it,
    given where it ends. The one with the highest log probability plus Gumbel noise has that distribution.
    """
    total = np.full(len(words.data), -np.inf)  # log of the sum over all segmentations up to an offset
    total[words.begins] = 0
    highest, last = np.full(len(total), -np.inf), np.zeros(len(total), dtype=np.int64)
    noise = random.gumbel(size=len(arcs.begins))
    for first, after in zip(arcs.steps[:-1].tolist(), arcs.steps[1:].tolist(), strict=True):
        ends = arcs.ends[first:after]
        found = total[arcs.begins[first:after]] + alpha * arcs.scores[first:after]
        total[ends] = np.logaddexp(total[ends], found)
        noisy = found + noise[first:after]
        higher = np.flatnonzero(noisy > highest[ends])
        highest[ends[higher]] = noisy[higher]
        last[ends[higher]] = first + higher
    return last


def trace(words: Words, arcs: Arcs, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arcs of the segmentation of each word, followed backwards from its end.

    Args:
        words: the words
        arcs: their arcs
        last: the last arc up to each offset

    Returns:
        the arcs of all words, concatenated, int64 (n,), and the number of arcs of each word, int64 (words,)
    """
    steps, which = [], []
    places, alive = words.ends, np.arange(len(words.ends))
    while len(alive):
        steps.append(last[places])
        which.append(alive)
        places = arcs.begins[steps[-1]]
        unfinished = places > words.begins[alive]
        places, alive = places[unfinished], alive[unfinished]
    counts = np.bincount(np.concatenate(which), minlength=len(words.ends)) if which else np.zeros(0, dtype=np.int64)
    chosen, ends = np.empty(int(counts.sum()), dtype=np.int64), np.cumsum(counts)
    for step, (taken, alive) in enumerate(zip(steps, which, strict=True)):
        chosen[ends[alive] - 1 - step] = taken
    return chosen, counts
