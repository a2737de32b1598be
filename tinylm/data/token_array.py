"""TokenArray: token ids in several files, read as one array."""

from collections.abc import Sequence
from typing import overload

import numpy as np

CHUNK = 1 << 20  # tokens that are compared at once


class TokenArray:
    """Consecutive pieces of token ids, usually memory-mapped, indexed as one read-only array.

    Slices are views. An array of positions, of any shape, gives an array of that shape.

    Args:
        pieces: integer arrays of one dimension; their types may differ

    Attributes:
        pieces: those that are not empty
        dtype: the smallest type that holds all of theirs
    """

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self.pieces = [piece for piece in pieces if len(piece)]
        self.dtype = np.result_type(*self.pieces) if self.pieces else np.dtype(np.uint16)
        self._bounds = np.cumsum([0, *map(len, self.pieces)])  # (pieces + 1,)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @overload
    def __getitem__(self, index: slice) -> "TokenArray": ...

    @overload
    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...

    def __getitem__(self, index: slice | np.ndarray) -> "TokenArray | np.ndarray":
        if not isinstance(index, slice):
            return self._take(np.asarray(index))
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise IndexError(f"a slice of tokens must have step 1, got {step}")
        bounds = zip(self.pieces, self._bounds, strict=False)
        return TokenArray([piece[max(start - first, 0) : max(stop - first, 0)] for piece, first in bounds])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the pieces of a TokenArray are joined by copying them")
        whole = np.concatenate(self.pieces) if self.pieces else np.empty(0, self.dtype)
        return whole.astype(self.dtype if dtype is None else dtype, copy=False)

    def tolist(self) -> list[int]:
        """All tokens as Python's integers."""
        return np.asarray(self).tolist()

    def read(self, start: int, target: np.ndarray) -> None:
        """Copies the tokens from `start`, at least 0, into an array of one dimension, which they must fill."""
        number = int(np.searchsorted(self._bounds, start, side="right")) - 1
        offset, done = start - int(self._bounds[number]), 0
        while done < len(target):
            found = self.pieces[number][offset : offset + len(target) - done]
            target[done : done + len(found)] = found
            number, offset, done = number + 1, 0, done + len(found)

    def _take(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at positions; negative positions count from the end."""
        positions = np.where(positions < 0, positions + len(self), positions)
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"positions must be within the {len(self):,} tokens")
        number = np.searchsorted(self._bounds, positions, side="right") - 1  # of the piece
        tokens = np.empty(positions.shape, self.dtype)
        for piece in np.unique(number):
            there = number == piece
            tokens[there] = self.pieces[piece][positions[there] - self._bounds[piece]]
        return tokens


Tokens = np.ndarray | TokenArray  # ids in one array or in several


def pieces_of(tokens: Tokens) -> list[np.ndarray]:
    """The arrays that tokens consist of."""
    return tokens.pieces if isinstance(tokens, TokenArray) else [tokens]


def positions_of(tokens: Tokens, token: int) -> np.ndarray:
    """The positions of a token, int64 (n,). Reads all tokens."""
    found, first = [np.empty(0, np.int64)], 0
    for piece in pieces_of(tokens):
        for begin in range(0, len(piece), CHUNK):
            found.append(np.flatnonzero(piece[begin : begin + CHUNK] == token) + first + begin)
        first += len(piece)
    return np.concatenate(found)


def first_position(tokens: Tokens, token: int, start: int) -> int | None:
    """The first position of a token from `start` on; None if there is none. Reads no further than a chunk after it."""
    for begin in range(start, len(tokens), CHUNK):
        found = positions_of(tokens[begin : begin + CHUNK], token)
        if len(found):
            return begin + int(found[0])
    return None


def read_windows(tokens: Tokens, starts: np.ndarray, length: int) -> np.ndarray:
    """The windows of `length` tokens that begin at `starts`, int64 (starts, length).

    A window that begins at -1 begins with the last token and continues with the first.

    Raises:
        IndexError: if a window reaches beyond the tokens.
    """
    if len(starts) and not (starts.min() >= -1 and starts.max() + length <= len(tokens)):
        raise IndexError(f"windows of {length:,} tokens must be within the {len(tokens):,} tokens")
    whole = tokens if isinstance(tokens, TokenArray) else TokenArray([tokens])
    windows = np.empty((len(starts), length), np.int64)
    for start, window in zip(starts.tolist(), windows, strict=True):
        if start < 0:
            whole.read(len(tokens) - 1, window[:1])
        whole.read(max(start, 0), window[max(-start, 0) :])
    return windows
