"""Byte pair encoding: from bytes to frequent pieces of words (Gage 1994; Sennrich et al. 2016; on bytes, GPT-2).

Training starts with the 256 bytes and, again and again, makes the most frequent pair of neighbours a new token.
Encoding takes a word's bytes and merges neighbours in the order in which the pairs were learned:

    merges        1. h e      2. l o      3. he l
    "hello"       h e l l o > he l l o > he l lo > hel lo

Words are merged apart from each other (pretokenize.py), so it is enough to learn from each different word once, with
its count. Any text can be encoded, since all bytes are tokens. The ids are GPT-2's wherever the merges are.

Left out: dropout of merges, a normalization of the text, tokens that reach over words.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.base import Tokenizer, utf8
from tinylm.tokenizer.pretokenize import WordSplitter

Pair = tuple[int, int]

# GPT-2's order of the bytes: those that are printable in Latin-1 first. A byte's id is its place here.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = bytes([*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)])
BYTE_IDS = bytes(BYTES.index(byte) for byte in range(256))  # for bytes.translate: a word's bytes as ids

MAX_REMEMBERED = 1 << 18  # words whose ids are kept
MAX_IDS = 1 << 24  # beyond it a damaged file would ask for a vocabulary of holes


class BPETokenizer(Tokenizer):
    """Bytes, what is merged of them, then the special tokens: numbered in this order, or as `ids` says.

    Args:
        merges: pairs of ids in the order in which they were learned. Each makes the next new id, or, where its bytes
            are a token already, that one.
        pattern: what a word is, as `WordSplitter` takes it
        special_tokens: their ids follow
        ids: other numbers for all of these, as files of other tools have them: `ids[i]` instead of i. Numbers that are
            left out become tokens without bytes, which no text contains. The merges keep the numbers of their own.

    Raises:
        ConfigError: if a merge is of ids that are not there yet, the pattern is none, or ids are not different numbers.
    """

    kind = "bpe"

    def __init__(
        self,
        merges: Sequence[Sequence[int]],
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        ids: Sequence[int] | None = None,
    ) -> None:
        token_bytes = [bytes([byte]) for byte in BYTES]
        index = {piece: token for token, piece in enumerate(token_bytes)}
        self.merges = [(left, right) for left, right in merges]
        self._merged: dict[Pair, Pair] = {}  # pair -> (rank, id); the pair with the lowest rank is merged first
        for rank, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(token_bytes) and 0 <= right < len(token_bytes)) or (left, right) in self._merged:
                raise ConfigError(f"merges: number {rank} is of ids that are not there yet, or a repetition")
            self._merged[left, right] = rank, add_token((left, right), token_bytes, index)
        super().__init__(token_bytes, special_tokens)
        self._ids = None if ids is None else check_ids(ids, len(self.token_bytes))
        if self._ids is not None:
            self._renumber(self._ids)
        self.pattern = pattern
        self._splitter = WordSplitter(pattern)
        self._remembered: dict[str, list[int]] = {}

    @staticmethod
    def from_gpt2(vocab: str | Path, merges: str | Path) -> "BPETokenizer":
        """Reads GPT-2's vocab.json and merges.txt. Errors as `read_gpt2`'s, in formats.py."""
        from tinylm.tokenizer.formats import read_gpt2  # it knows this file

        return read_gpt2(vocab, merges)

    def _renumber(self, ids: np.ndarray) -> None:
        token_bytes = [b""] * (int(ids.max()) + 1)
        for token, piece in zip(ids.tolist(), self.token_bytes, strict=True):
            token_bytes[token] = piece
        self.token_bytes = token_bytes
        self.special_tokens = {name: int(ids[token]) for name, token in self.special_tokens.items()}

    @property
    def ids(self) -> list[int] | None:
        """The ids of bytes, merges and special tokens, or None where they are counted."""
        return None if self._ids is None else self._ids.tolist()

    @classmethod
    def train_from_streams(
        cls,
        streams: Iterable[Iterable[str]],
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """Learns merges.

        Args:
            streams: texts, each in chunks
            vocab_size: bytes, merges and special tokens together; fewer where every word is one token before that
            pattern: as for the class
            special_tokens: as for the class

        Raises:
            ConfigError: if vocab_size has no room for bytes and special tokens.
            DataError: if there is no text, or it has a lone surrogate.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ConfigError(f"vocab_size must be at least {smallest}, the bytes and special tokens, got {vocab_size}")
        splitter, counts = WordSplitter(pattern), Counter[str]()
        for stream in streams:
            for words in splitter.words_of_stream(stream):
                counts.update(words)
        if not counts:
            raise DataError("the corpus is empty: there is no word to learn from")
        return cls(learn_merges(counts, vocab_size - len(special_tokens)), pattern, special_tokens)

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Raises:
            DataError: for a lone surrogate.
        """
        return self._encode_words(self._splitter.words(text))

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[np.ndarray]:
        """As `Tokenizer`: words are not cut where chunks end."""
        return map(self._encode_words, self._splitter.words_of_stream(chunks))

    def _encode_words(self, words: list[str]) -> np.ndarray:
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.clear()
        for word in set(words) - self._remembered.keys():
            self._remembered[word] = merge_word(list(utf8(word).translate(BYTE_IDS)), self._merged)
        ids = np.fromiter(chain.from_iterable(map(self._remembered.__getitem__, words)), dtype=np.int64)
        return ids if self._ids is None else self._ids[ids]

    def options(self) -> dict[str, Any]:
        """Merges, pattern and special tokens; ids where they are not counted."""
        options = {
            "merges": [list(pair) for pair in self.merges],
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
        }
        return options if self.ids is None else options | {"ids": self.ids}


def check_ids(ids: Sequence[int], count: int) -> np.ndarray | None:
    """The ids of `count` tokens as int64 (count,), or None where they are 0, 1, 2 ...

    Raises:
        ConfigError: if they are not as many different numbers.
    """
    array = np.asarray(ids)
    if array.dtype.kind != "i" or array.ndim != 1:
        raise ConfigError("ids must be whole numbers")
    different = len(np.unique(array))
    if not different == len(array) == count or array.min() < 0 or array.max() >= MAX_IDS:
        raise ConfigError(
            f"ids must be {count} different numbers below {MAX_IDS}, not negative, one for each token, "
            f"got {len(array)}, {different} of them different, from {array.min()} to {array.max()}"
        )
    return None if np.array_equal(array, np.arange(count)) else array.astype(np.int64)


def add_token(pair: Pair, pieces: list[bytes], ids: dict[bytes, int]) -> int:
    """The id of what a pair is merged into: the next one, or that of the token that has these bytes already.

    Args:
        pair: ids of its two parts
        pieces: id -> bytes; a new token is added
        ids: bytes -> id, likewise
    """
    piece = pieces[pair[0]] + pieces[pair[1]]
    if piece not in ids:
        ids[piece] = len(pieces)
        pieces.append(piece)
    return ids[piece]


def merge_word(ids: list[int], merged: dict[Pair, Pair]) -> list[int]:
    """Merges neighbours, those that were learned first before others, from left to right, until none is left to merge.

    A heap of (rank, place) over a linked list: n log n steps for n bytes, whatever they are.

    Args:
        ids: of a word's bytes; changed in place
        merged: pair -> (rank, id)

    Returns:
        the word's tokens
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


def learn_merges(counts: dict[str, int], num_tokens: int) -> list[Pair]:
    """The merges of a text, most frequent first; of equally frequent pairs the one of smaller ids.

    After a merge only the words that had the pair are looked at again.

    Args:
        counts: word -> how often it occurs
        num_tokens: bytes and merges together, at most

    Returns:
        pairs of ids in the order in which they were learned
    """
    words = [list(utf8(word).translate(BYTE_IDS)) for word in counts]
    weights = list(counts.values())
    pair_counts: Counter[Pair] = Counter()
    homes: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> the words that have, or had, it
    for number, (word, weight) in enumerate(zip(words, weights, strict=True)):
        for pair in pairwise(word):
            pair_counts[pair] += weight
            homes[pair].add(number)
    best = [(-count, pair) for pair, count in pair_counts.items()]
    heapify(best)
    pieces = [bytes([byte]) for byte in BYTES]
    ids = {piece: token for token, piece in enumerate(pieces)}
    merges: list[Pair] = []
    while best and len(pieces) < num_tokens:
        count, pair = heappop(best)
        if -count != pair_counts[pair] or not count:
            continue  # it has another count by now, and another entry
        merges.append(pair)
        token = add_token(pair, pieces, ids)
        changed: Counter[Pair] = Counter()
        for number in homes.pop(pair):
            old, new = words[number], _merge_pair(words[number], pair, token)
            for each in pairwise(old):
                changed[each] -= weights[number]
            for each in pairwise(new):
                changed[each] += weights[number]
                homes[each].add(number)
            words[number] = new
        for each, difference in changed.items():
            if difference:
                pair_counts[each] += difference
                heappush(best, (-pair_counts[each], each))
    return merges


def _merge_pair(word: list[int], pair: Pair, token: int) -> list[int]:
    """A word with every occurrence of a pair replaced by a token, from left to right."""
    merged, place = [], 0
    while place < len(word):
        found = (word[place], word[place + 1]) == pair if place + 1 < len(word) else False
        merged.append(token if found else word[place])
        place += 2 if found else 1
    return merged
