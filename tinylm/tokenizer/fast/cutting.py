"""Cuts texts where no piece of a unigram model can span the cut; the parts can be segmented independently.

    pieces  " the" " " "cat" "c" "ca" "s"        " the cats"  >  " the" " " "cat" "s"

A text can be cut between two characters that no piece has side by side. A table of byte pairs, the last byte of the one
and the first byte of the other, decides for ASCII. Other characters that the table does not separate are looked up in a
table of character pairs.
"""

from functools import cached_property

import numpy as np

from tinylm.errors import DataError
from tinylm.tokenizer.fast.arrays import KeyTable
from tinylm.tokenizer.fast.blocks import SEPARATOR
from tinylm.tokenizer.fast.pretokenize import BETWEEN
from tinylm.tokenizer.fast.segmenting import character_sizes

LONGEST = 1 << 21  # bytes of a part, which already take seconds
SPACE_BYTE = 32


class Cutter:
    """Finds the places where texts can be cut.

    Args:
        names: the UTF-8 of each piece
        spaces: whether texts are cut before every space and nowhere else; otherwise the pieces decide
    """

    def __init__(self, names: list[bytes], spaces: bool) -> None:
        self._names, self._spaces = names, spaces

    @cached_property
    def _joined(self) -> np.ndarray:
        """All pieces, as UTF-8 with `SEPARATOR` between them, uint8 (bytes,)."""
        return np.frombuffer(SEPARATOR.join(self._names) + SEPARATOR, dtype=np.uint8)

    @cached_property
    def _apart(self) -> np.ndarray:
        """Whether a text can be cut between two bytes, bool (65536,), at 256 times the first plus the second."""
        apart = np.ones(1 << 16, dtype=bool)
        apart[_pairs(self._joined)] = False
        apart = apart.reshape(256, 256)
        apart[:, 0x80:0xC0] = False  # within a character
        apart[BETWEEN], apart[:, BETWEEN] = True, True
        return apart.reshape(-1)

    @cached_property
    def _neighbours(self) -> KeyTable:
        """The pairs of neighbouring characters in pieces, except pairs of ASCII characters."""
        table = KeyTable()
        table.find_or_add(_character_pairs(self._joined, _wide(self._joined)))
        return table

    def starts(self, data: np.ndarray) -> np.ndarray:
        """The offsets at which parts begin, int64 (parts,). A separator is a part by itself.

        Args:
            data: UTF-8, uint8 (bytes,), with `SEPARATOR` between texts

        Raises:
            DataError: for a part that is too long.
        """
        if not len(data):
            return np.zeros(0, dtype=np.int64)
        cut = np.ones(len(data), dtype=bool)
        if self._spaces:
            edge = data == BETWEEN
            cut[1:] = (data[1:] == SPACE_BYTE) | edge[1:] | edge[:-1]
        else:
            cut[1:] = self._apart[_pairs(data)]
            places = _wide(data)
            places = places[~cut[places]]
            if len(places):
                cut[places] = self._neighbours.find(_character_pairs(data, places)) < 0
        starts = np.flatnonzero(cut)
        sizes = np.diff(starts, append=len(data))
        if sizes.max() > LONGEST:
            raise too_long(data, int(starts[sizes.argmax()]), int(sizes.max()))
        return starts


def _pairs(data: np.ndarray) -> np.ndarray:
    """256 times each byte plus the next byte, uint16 (bytes - 1,)."""
    return data[:-1].astype(np.uint16) << np.uint16(8) | data[1:]


def _wide(data: np.ndarray) -> np.ndarray:
    """The offsets of characters that are not ASCII or follow such a character, not at separators; int64 (n,)."""
    begins, wide = (data[1:] & 0xC0) != 0x80, (data[1:] >= 0x80) | (data[:-1] >= 0x80)
    return np.flatnonzero(begins & wide & (data[1:] != BETWEEN) & (data[:-1] != BETWEEN)) + 1


_FIRST_BYTES = np.array([0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF], dtype=np.uint64)


def _character_pairs(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The UTF-8 of the characters before and after each place, packed into one integer, uint64 (n,)."""
    padded = np.concatenate([data, np.zeros(4, dtype=np.uint8)])
    fours = np.ndarray(len(data) + 1, dtype="<u4", buffer=padded, strides=(1,))  # the 4 bytes from each offset
    before = places - 1
    while (inside := (data[before] & 0xC0) == 0x80).any():
        before = before - inside
    first, second = (fours[at] & _FIRST_BYTES[character_sizes(data[at])] for at in (before, places))
    return first << np.uint64(32) | second


def too_long(data: np.ndarray, begin: int, size: int) -> DataError:
    """The error for a part of too many bytes; the message shows its beginning."""
    shown = data[begin : begin + 80].tobytes().decode(errors="ignore")[:20]
    return DataError(
        f"the text has {size:,} bytes from {shown!a}... on in which pieces could go across every place; the unigram "
        f"model takes {LONGEST:,} at most: insert spaces or line ends"
    )
