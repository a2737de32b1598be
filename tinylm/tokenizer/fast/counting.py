"""Counts the words of a corpus, in several processes and in bounded memory."""

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np

from tinylm.errors import ConfigError, DataError, notice
from tinylm.tokenizer.fast.arrays import slices
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.words import BlockCounter, Splitter, WordCounter
from tinylm.workers import map_in_order

WORDS_PER_MEGABYTE = 5000  # distinct words per megabyte of memory, in training
LONG = 1 << 16  # bytes of a word; one of 200 MB would take hours to learn from
ALONE = 30  # blocks; with fewer, further processes do not pay off


def count_words(
    found: Iterable[Block],
    pattern: str,
    processes: int | None,
    memory_limit: int | None,
    progress: Callable[[str, int], object],
    words_per_megabyte: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct words of a text: their UTF-8, uint8 (bytes,), sizes in bytes, (words,), and counts, (words,).

    Args:
        found: the text
        pattern: as in `WordSplitter`
        processes: processes that count words; None for one per core
        memory_limit: megabytes for distinct words. Beyond it the rarest words are dropped, with a notice.
        progress: called with ("counting", bytes read so far)
        words_per_megabyte: distinct words per megabyte of `memory_limit`, including the memory of the learner

    Raises:
        ConfigError: for a memory_limit below 1.
        DataError: if the text is empty or has a lone surrogate.
    """
    if memory_limit is not None and memory_limit < 1:
        raise ConfigError(f"memory_limit must be at least 1 megabyte, got {memory_limit}")
    most = (memory_limit or 0) * (words_per_megabyte or WORDS_PER_MEGABYTE)
    total = count_blocks(found, pattern, processes, lambda done: progress("counting", done), most)
    if total.forgotten:
        notice(f"more words than {memory_limit} MB can hold: forgot rare ones, {total.forgotten:,} occurrences")
    words, sizes, counts = total.take()
    if not len(counts):
        raise DataError("the corpus is empty: training needs at least one word")
    if longer := int((sizes > LONG).sum()):
        each = "a word" if longer == 1 else f"{longer:,} words, the longest"
        notice(f"{each} of {sizes.max():,} bytes: learning from the first {LONG:,} bytes")
        words, sizes = beginnings(words, sizes, LONG)
    return words, sizes, counts


def count_blocks(
    found: Iterable[Block],
    splitter: str | Splitter,
    processes: int | None,
    read: Callable[[int], object],
    most: int = 0,
) -> WordCounter:
    """The counted words of a text.

    Args:
        found: the text
        splitter: as in `BlockCounter`
        processes: processes that count; None for one per core
        read: called with the bytes read so far
        most: as in `WordCounter`
    """
    total, count, num_bytes, found = WordCounter(most), BlockCounter(splitter), 0, iter(found)
    for block in found if processes == 1 else islice(found, ALONE):
        total.add(*count.splitter.word_starts(block))
        num_bytes += len(block.data)
        read(num_bytes)
    for length, *counted in map_in_order(count, found, processes):
        total.add(*counted)
        num_bytes += length
        read(num_bytes)
    return total


def beginnings(words: np.ndarray, sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncates words to a number of bytes, at character boundaries: the words' bytes, and their sizes.

    Args:
        words: the UTF-8 of the words, concatenated, uint8 (bytes,)
        sizes: length of each word in bytes, (words,)
        most: the most bytes of a word
    """
    begins, kept = np.cumsum(sizes) - sizes, np.minimum(sizes, most)
    for _ in range(3):  # a character has at most three bytes after its first
        cut = np.flatnonzero(kept < sizes)
        kept[cut] -= (words[begins[cut] + kept[cut]] & 0xC0) == 0x80
    return slices(words, begins, kept), kept
