"""The unigram model of a tokenizer: pieces and scores, applied to text that is already normalized.

A text is cut into parts where no piece can span the cut (fast/cutting.py), which changes no segmentation. Most parts
are words. Each distinct part is segmented once.
"""

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.fast.arrays import slices
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.fast.cutting import Cutter
from tinylm.tokenizer.fast.segmenting import PieceTrie, Words, best_arcs, drawn_arcs, margins, trace, words_of
from tinylm.tokenizer.fast.words import MAX_KNOWN, WordTable, looked_up
from tinylm.tokenizer.segmentation import Arc, Pieces

MOST_ALPHA = 1e6  # sums could overflow beyond it
SHORT = 300  # bytes; longer texts are encoded faster with NumPy
TOGETHER = 256  # bytes of a part; longer ones are segmented alone, which is faster where they are few
ROUNDED = 1 << 16  # bytes; sums over longer texts are not rounded to float32
LARGEST_SUM = 100_000.0  # of float32, in nats, as in sentencepiece 0.2.3
DRAWN = 1 << 16  # bytes segmented at once at random
MOST_CUTS = 100  # places tried for a cut


class Token(NamedTuple):
    """A token of a text: its id, and the range of characters that it covers."""

    id: int
    begin: int
    end: int


class UnigramModel:
    """Pieces with ids and scores.

    Args:
        ids: piece -> id
        scores: piece -> log probability
        unknown_score: log probability of a character that is not a piece
        unknown: the id for a run of such characters, or the 256 ids of bytes
        spaces: whether text is cut before every space, so that no piece spans one; otherwise the pieces decide
        dtype: of ids in blocks
        rounds: whether sums of scores, from the beginning of a text on, are rounded to float32 as in SentencePiece.
            Segmentations of nearly equal probability then depend on all of the text before them.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        scores: Mapping[str, float],
        unknown_score: float,
        unknown: int | Sequence[int],
        spaces: bool,
        dtype: np.dtype,
        rounds: bool = False,
    ) -> None:
        self.pieces, self._ids, self.spaces = Pieces(scores, unknown_score), dict(ids), spaces
        self._unknown = unknown if isinstance(unknown, int) else None
        self._bytes = np.array([] if isinstance(unknown, int) else unknown, dtype=np.int64)
        self._names = [utf8(piece) for piece in scores]
        self._numbers = np.array([*(self._ids[piece] for piece in scores), self._unknown or 0], dtype=np.int64)
        self._remembered: dict[bytes, list[int]] = {}
        self._dtype, self.rounds = dtype, rounds
        self._forget()

    def _forget(self) -> None:
        """Clears the table of known parts."""
        self._words = WordTable(self._dtype)
        self._margins, self._totals = np.zeros(0), np.zeros(0)  # of each part, if `rounds`

    @cached_property
    def closed(self) -> bool:
        """Whether every character of a piece is itself a piece, so that `unknown_score` never matters."""
        return all(character in self._ids for character in {*"".join(self._ids)})

    # --- cuts

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._names, self.spaces)

    def starts(self, data: np.ndarray) -> np.ndarray:
        """The offsets at which parts begin, as in `Cutter.starts`."""
        return self._cutter.starts(data)

    def splits(self, before: str, after: str) -> bool:
        """Whether a text can be cut between two characters: no piece and no run of unknown characters spans the cut."""
        known = self._unknown is None or self.spaces or before in self._ids or after in self._ids
        return known and len(self.starts(np.frombuffer(utf8(before + after), dtype=np.uint8))) > 1

    def last_cut(self, text: str) -> int:
        """The last position at which a text can be cut as in `splits`; 0 if there is none among the last parts."""
        data = utf8(text)
        for start in self.starts(np.frombuffer(data, dtype=np.uint8))[:0:-1][:MOST_CUTS].tolist():
            cut = len(data[:start].decode())
            if self.splits(text[cut - 1], text[cut]):
                return cut
        return 0

    # --- the most likely segmentation

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            DataError: for a lone surrogate, or a part that is too long.
        """
        data = utf8(text)
        if self.rounds and len(data) <= SHORT:
            return self._encode_rounded(text)
        if len(data) > SHORT:
            return self.encode_data(data, None).tolist()
        starts = [*self.starts(np.frombuffer(data, dtype=np.uint8)).tolist(), len(data)]
        parts = [data[begin:end] for begin, end in pairwise(starts)]
        found = looked_up(parts, self._remembered, lambda part: self._encode_part(part.decode()))
        return found if self._unknown is None or self.spaces else _fused(found, self._unknown)

    def _encode_rounded(self, text: str) -> list[int]:
        """The ids of a text, by sums from its beginning that are rounded to float32."""
        return [token.id for token in self._tokens(text, self.pieces.best_path(text, _float32, LARGEST_SUM))]

    def _encode_part(self, part: str) -> list[int]:
        return [token.id for token in self._tokens(part, self.pieces.best_path(part))]

    def _tokens(self, part: str, path: Sequence[Arc], offset: int = 0) -> list[Token]:
        """The tokens of a segmentation. Unknown characters become bytes, or each run of them one token."""
        found: list[Token] = []
        for begin, end in path:
            token = self._ids.get(part[begin:end])
            if token is not None:
                found.append(Token(token, offset + begin, offset + end))
            elif self._unknown is None:
                found += [Token(int(self._bytes[byte]), offset + begin, offset + end) for byte in utf8(part[begin:end])]
            else:
                found.append(Token(self._unknown, offset + begin, offset + end))
        return found if self._unknown is None else _fused_tokens(found, self._unknown)

    def tokens(self, text: str) -> list[Token]:
        """The tokens of a text as in `encode`, with the characters that they cover."""
        if self.rounds and len(text) <= ROUNDED:
            return self._tokens(text, self.pieces.best_path(text, _float32, LARGEST_SUM))
        found: list[Token] = []
        for offset, part in self._parts(text):
            found += self._tokens(part, self.pieces.best_path(part), offset)
        return found if self._unknown is None or self.spaces else _fused_tokens(found, self._unknown)

    def _parts(self, text: str) -> Iterator[tuple[int, str]]:
        """The parts of a text: (offset, part)."""
        data, offset = utf8(text), 0
        for begin, end in pairwise([*self.starts(np.frombuffer(data, dtype=np.uint8)).tolist(), len(data)]):
            part = data[begin:end].decode()
            yield offset, part
            offset += len(part)

    # --- many texts at once

    @cached_property
    def _trie(self) -> PieceTrie:
        scores = np.array([*self.pieces.scores.values()], dtype=np.float64)
        return PieceTrie(self._names, scores, self.pieces.unknown_score)

    def encode_data(self, data: bytes, separator: int | None) -> np.ndarray:
        """The ids of texts, (n,). `data`: their UTF-8, joined by `SEPARATOR`, which becomes the id `separator`."""
        text = np.frombuffer(data, dtype=np.uint8)
        if self._words.size > MAX_KNOWN:
            self._forget()
        starts = self.starts(text)
        numbers = self._words.spelled(text, starts, separator, self._learn_parts)
        if self.rounds and len(data) <= ROUNDED and self._is_close(numbers, np.diff(starts, append=len(text))):
            return np.array(self._encode_rounded(data.decode()), dtype=np.int64)
        ids = self._words.lists.take(numbers)
        return ids if self._unknown is None or self.spaces else _fused_array(ids, self._unknown)

    def _is_close(self, numbers: np.ndarray, sizes: np.ndarray) -> bool:
        """Whether rounding to float32 may decide a segmentation. Each character adds at most half a unit of error."""
        sums = 40 + np.cumsum(self._totals[numbers])
        return bool((self._margins[numbers] < 2.0**-22 * (sizes + 1) * sums).any())

    def _learn_parts(self, text: np.ndarray, starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> None:
        """Segments new parts and stores their ids in `_words`. Arguments as in `WordTable.spelled`."""
        lists, short = self._words.lists, sizes <= TOGETHER
        words = words_of(text, starts[short], sizes[short])
        arcs = self._trie.arcs(words)
        last, best = best_arcs(words, arcs)
        chosen, counts = trace(words, arcs, last)
        lists.put(numbers[short], *self._ids_of(words, arcs, chosen, counts))
        if self.rounds and len(numbers):
            self._margins, self._totals = (
                np.pad(each, (0, max(self._words.size - len(each), 0))) for each in (self._margins, self._totals)
            )
            self._margins[numbers], self._totals[numbers] = 0.0, 0.0  # long parts are always close
            if len(counts):
                self._margins[numbers[short]] = margins(arcs, last, best, chosen, counts)
                self._totals[numbers[short]] = np.add.reduceat(np.abs(arcs.scores[chosen]), np.cumsum(counts) - counts)
        for place in np.flatnonzero(~short):
            ids = self._encode_part(text[starts[place] : starts[place] + sizes[place]].tobytes().decode())
            lists.put(numbers[[place]], np.array(ids, dtype=np.int64), np.array([len(ids)]))

    def _ids_of(self, words: Words, arcs: Any, chosen: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of chosen arcs, and their count in each word."""
        pieces, word = arcs.pieces[chosen], np.repeat(np.arange(len(counts)), counts)
        ids, unknown = self._numbers[pieces], pieces < 0
        if not unknown.any():
            return ids, counts
        if self._unknown is None:
            sizes = np.where(unknown, arcs.ends[chosen] - arcs.begins[chosen], 1)
            ids, is_byte = np.repeat(ids, sizes), np.repeat(unknown, sizes)
            ids[is_byte] = self._bytes[slices(words.data, arcs.begins[chosen][unknown], sizes[unknown])]
            return ids, np.bincount(word, sizes, len(counts)).astype(np.int64)
        kept = np.ones(len(ids), dtype=bool)
        kept[1:] = ~(unknown[1:] & unknown[:-1] & (word[1:] == word[:-1]))
        return ids[kept], np.bincount(word[kept], minlength=len(counts))

    # --- other segmentations

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a segmentation drawn in proportion to its probability to the power alpha, int64 (n,).

        Raises:
            ConfigError: for an alpha below 0, or so large that sums would overflow.
        """
        if not 0 <= alpha <= MOST_ALPHA:
            raise ConfigError(f"alpha must be from 0 to {MOST_ALPHA:g}, got {alpha}")
        data = np.frombuffer(utf8(text), dtype=np.uint8)
        starts = self.starts(data)
        sizes = np.diff(starts, append=len(data))
        groups = np.flatnonzero(np.diff(starts // DRAWN)) + 1
        found = [np.zeros(0, dtype=np.int64)]
        for begin, end in pairwise([0, *groups.tolist(), len(starts)]):
            if begin < end:
                words = words_of(data, starts[begin:end], sizes[begin:end])
                arcs = self._trie.arcs(words)
                last = drawn_arcs(words, arcs, alpha, random)
                found.append(self._ids_of(words, arcs, *trace(words, arcs, last))[0])
        ids = np.concatenate(found)
        return ids if self._unknown is None or self.spaces else _fused_array(ids, self._unknown)

    def n_best(self, text: str, n: int) -> list[tuple[list[int], float]]:
        """The n most likely segmentations of a text, the best first: (ids, log probability)."""
        best: list[tuple[float, list[Token]]] = [(0.0, [])]
        for offset, part in self._parts(text):
            of_part = [(score, self._tokens(part, path, offset)) for score, path in self.pieces.n_best(part, n)]
            found = [(before + score, tokens + more) for before, tokens in best for score, more in of_part]
            best = sorted(found, key=lambda each: -each[0])[:n]
        fuse = self._unknown is not None and not self.spaces
        return [
            ([token.id for token in (_fused_tokens(tokens, self._unknown or 0) if fuse else tokens)], score)
            for score, tokens in best
        ]

    def log_total(self, text: str, alpha: float = 1.0) -> float:
        """The log of the sum, over all segmentations of a text, of their probability to the power alpha."""
        return math.fsum(self.pieces.log_total(part, alpha) for _, part in self._parts(text))


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _fused(ids: list[int], unknown: int) -> list[int]:
    """The ids with one `unknown` for each run of them."""
    return [token for place, token in enumerate(ids) if token != unknown or not place or ids[place - 1] != unknown]


def _fused_array(ids: np.ndarray, unknown: int) -> np.ndarray:
    again = np.zeros(len(ids), dtype=bool)
    again[1:] = (ids[1:] == unknown) & (ids[:-1] == unknown)
    return ids[~again] if again.any() else ids


def _fused_tokens(tokens: list[Token], unknown: int) -> list[Token]:
    found: list[Token] = []
    for token in tokens:
        if token.id == unknown and found and found[-1].id == unknown and found[-1].end == token.begin:
            found[-1] = found[-1]._replace(end=token.end)
        else:
            found.append(token)
    return found
