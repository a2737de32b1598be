"""WordPiece training: counts the words of a text, chooses the alphabet and learns the pieces."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from tinylm.errors import ConfigError, DataError, notice
from tinylm.tokenizer.fast.blocks import Block, utf8
from tinylm.tokenizer.fast.chunks import SpacedWords, WholeWords
from tinylm.tokenizer.fast.counting import count_blocks
from tinylm.tokenizer.fast.learning import MergeLearner
from tinylm.tokenizer.fast.scoring import ScoreLearner
from tinylm.tokenizer.fast.words import WordCounter

Score = Literal["likelihood", "count"]
TOGETHER = 1 << 12  # chunks normalized at once; bounds the memory
Words = tuple[np.ndarray, np.ndarray, np.ndarray]  # characters (n,), sizes (words,), counts (words,)


def count_words(
    found: Iterable[Block],
    chunks: WholeWords | SpacedWords,
    processes: int | None,
    mark: str,
    longest: int,
    read: Callable[[int], object],
) -> Words:
    """Counts the words of a text, for `learn_pieces`.

    Args:
        found: the text
        chunks: splits the text into words
        processes: processes that count; None for one per core
        mark: the prefix of continuing pieces; words that begin with it are left out
        longest: the most characters of a word between spaces; longer words are left out, since they are unknown
        read: called with the bytes read so far

    Raises:
        DataError: if the text has no word.
    """
    data, sizes, counts = count_blocks(found, chunks, processes, read).take()
    if isinstance(chunks, SpacedWords):
        data, sizes, counts = _normalized(
            chunks, data, sizes, counts, lambda word: len(word) <= longest and not word.startswith(mark)
        )
    if not len(counts):
        raise DataError("the corpus is empty: training needs at least one word")
    points = np.frombuffer(data.tobytes().decode().encode("utf-32-le"), dtype="<u4")
    lengths = np.add.reduceat((data & 0xC0) != 0x80, np.cumsum(sizes) - sizes, dtype=np.int64)  # in characters
    return points, lengths, counts


def _normalized(
    chunks: SpacedWords, data: np.ndarray, sizes: np.ndarray, counts: np.ndarray, wanted: Callable[[str], bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The normalized words of counted chunks, without the unwanted ones."""
    text, place, total = data.tobytes(), 0, WordCounter()
    for first in range(0, len(counts), TOGETHER):
        found = Counter[str]()
        part = slice(first, first + TOGETHER)
        for size, count in zip(sizes[part].tolist(), counts[part].tolist(), strict=True):
            for word in chunks.words(text[place : place + size].decode()):
                if wanted(word):
                    found[word] += count
            place += size
        words = [utf8(word) for word in found]
        ends = np.cumsum([*map(len, words)], dtype=np.int64)
        starts = np.append(0, ends)[:-1]
        total.add(np.frombuffer(b"".join(words), dtype=np.uint8), starts, np.array([*found.values()], dtype=np.int64))
    return total.take()


def learn_pieces(
    words: Words,
    num_pieces: int,
    mark: str,
    score: Score,
    min_frequency: int | None,
    learned: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """Learns a vocabulary: every character in both forms, then the merged pieces.

    Args:
        words: the distinct words: the code points of their characters, int (n,), the number of characters of each,
            (words,), and its count, (words,)
        num_pieces: size of the vocabulary; at most half of it are characters, each of which has two forms
        mark: the prefix of continuing pieces
        score: as in `WordPieceTokenizer.train_from_blocks`
        min_frequency: as in `WordPieceTokenizer.train_from_blocks`
        learned: called with the number of pieces after each merge

    Raises:
        ConfigError: if num_pieces has no room for a character.
    """
    points = _alphabet(words, num_pieces // 4)
    if not len(points):
        raise ConfigError(f"vocab_size must leave room for at least 4 pieces, got {num_pieces}")
    words, names = _numbered(points, _spelled(points, words), mark)
    if not len(words[1]):
        return names
    if score == "count":
        return _by_count(words, names, mark, num_pieces, learned)
    learner = ScoreLearner(*words, names, mark, min_frequency)
    del words  # frees memory: the learner keeps what it needs
    for _ in learner.learn(num_pieces):
        learned(len(names))
    return names


def _numbered(points: np.ndarray, words: Words, mark: str) -> tuple[Words, list[str]]:
    """The words with characters as numbers, int32 (n,), and the name of each number: every character has two forms."""
    characters, sizes, counts = words
    inside = np.ones(len(characters), dtype=np.int8)
    inside[np.cumsum(sizes) - sizes] = 0
    letters = [chr(point) for point in points.tolist()]
    alone = set() if (characters[inside == 1] == ord(mark[0])).any() else {mark[0]}  # whole words never contain it
    names = sorted([*letters, *(mark + letter for letter in letters if letter not in alone)])
    index = {name: number for number, name in enumerate(names)}
    forms = np.array([[index[each], index.get(mark + each, 0)] for each in letters], dtype=np.int32)
    return (forms[np.searchsorted(points, characters), inside], sizes, counts), names


def _by_count(
    words: Words, names: list[str], mark: str, num_pieces: int, learned: Callable[[int], object]
) -> list[str]:
    """Learns pieces by the most frequent pair. A piece is the tuple of its characters' numbers, as bytes are in BPE."""
    pieces = [(number,) for number in range(len(names))]
    for _ in MergeLearner(*words, pieces).learn(num_pieces):
        learned(len(pieces))
    return ["".join([names[first], *(names[each].removeprefix(mark) for each in rest)]) for first, *rest in pieces]


def _alphabet(words: Words, most: int) -> np.ndarray:
    """The code points of the most frequent characters, in ascending order, int64 (n,)."""
    characters, sizes, counts = words
    points = np.unique(characters)
    if len(points) <= most:
        return points
    frequency = np.bincount(np.searchsorted(points, characters), np.repeat(counts, sizes))
    kept = np.argsort(-frequency, kind="stable")[:most]
    notice(
        f"{len(points):,} characters do not fit in half of the vocabulary: left out {len(points) - most:,} rare ones, "
        f"{int(frequency.sum() - frequency[kept].sum()):,} occurrences; they become [UNK]"
    )
    return np.sort(points[kept])


def _spelled(points: np.ndarray, words: Words) -> Words:
    """The words that consist of these characters only."""
    characters, sizes, counts = words
    known = np.isin(characters, points)
    if known.all():
        return words
    whole = np.logical_and.reduceat(known, np.cumsum(sizes) - sizes)
    return characters[np.repeat(whole, sizes)], sizes[whole], counts[whole]
