"""TokenArray: token ids in several files, read as one array."""

from collections.abc import Sequence
from typing import overload

import numpy as np


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
            raise IndexError(f"a slice of tokens has step 1, got {step}")
        bounds = zip(self.pieces, self._bounds, strict=False)
        return TokenArray([piece[max(start - first, 0) : max(stop - first, 0)] for piece, first in bounds])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the pieces of a TokenArray are joined by copying them")
        whole = np.concatenate(self.pieces) if self.pieces else np.empty(0, self.dtype)
        return whole.astype(self.dtype if dtype is None else dtype, copy=False)

    def _take(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at positions, of which negative ones count from the end."""
        positions = np.where(positions < 0, positions + len(self), positions)
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"positions must be within the {len(self):,} tokens")
        number = np.searchsorted(self._bounds, positions, side="right") - 1  # of the piece
        tokens = np.empty(positions.shape, self.dtype)
        for piece in np.unique(number):
            there = number == piece
            tokens[there] = self.pieces[piece][positions[there] - self._bounds[piece]]
        return tokens

    def where(self, token: int) -> np.ndarray:
        """The positions of a token, int64 (n,). Reads all pieces."""
        found = [
            np.flatnonzero(piece == token) + first for piece, first in zip(self.pieces, self._bounds, strict=False)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)
