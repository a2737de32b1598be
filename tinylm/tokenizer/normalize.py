"""Unicode normalization form C (NFC), which composes letters and their marks, with offsets into the original text.

    "e" U+0301  ->  "é"

A text can be cut, and its parts normalized independently, before any character that never joins the one before it.
"""

import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np


def nfc(text: str) -> str:
    """The text in NFC."""
    return unicodedata.normalize("NFC", text)


def nfc_offsets(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The offsets in a text where each character of its NFC begins and ends, int64 (n,) each."""
    if unicodedata.is_normalized("NFC", text):
        return np.arange(len(text)), np.arange(1, len(text) + 1)
    joins, begins, ends = joining(), [], []
    borders = [0, *(place for place in range(1, len(text)) if text[place] not in joins), len(text)]
    for begin, end in pairwise(borders):
        count = len(nfc(text[begin:end]))
        begins += [begin] * count
        ends += [end] * count
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)


@cache
def joining() -> frozenset[str]:
    """The characters that may join the one before them: marks, the second parts of compositions, medial jamo."""
    joins = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    characters = [chr(point) for point in range(0x80, 0x110000)]
    joins.update(filter(unicodedata.combining, characters))
    composed = [each for each in characters if unicodedata.decomposition(each)]
    for character in composed:
        parts = unicodedata.decomposition(character)
        if not parts.startswith("<"):
            joins.update(chr(int(part, 16)) for part in parts.split()[1:])
    return frozenset(joins | {each for each in composed if unicodedata.normalize("NFD", each)[0] in joins})
