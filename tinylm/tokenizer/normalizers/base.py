"""Normalizers: changes of a text before it is split, such as Unicode normalization form C (NFC).

    "e" U+0301  ->  "é"        NFC composes letters and their marks

A normalizer also gives the offsets of each character of its result in the original text, and says where a text can be
cut so that its parts can be normalized independently.
"""

import unicodedata
from abc import ABC, abstractmethod
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from tinylm.errors import ConfigError


class Normalizer(ABC):
    """A change of a text before it is split.

    Attributes:
        kind: its name in files
        most_per_byte: the most bytes that one byte of a text can become
        drops_first_spaces: whether all spaces at the beginning of a text are dropped
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type["Normalizer"]]] = {}
    most_per_byte: int = 3  # of NFC
    drops_first_spaces: bool = False

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.kind] = cls

    @abstractmethod
    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The normalized text.

        Args:
            text: any text
            continues: whether it continues an earlier part of a text, so that nothing is put before it
        """

    @abstractmethod
    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets in a text where each character of the normalized text begins and ends, int64 (n,) each."""

    @abstractmethod
    def may_cut(self, text: str, cut: int) -> bool:
        """Whether `text[:cut]` and `text[cut:]`, which continues it, can be normalized independently."""

    def name_of(self, content: str) -> str:
        """The string of an added token in normalized text."""
        return self.normalize(content)

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The kind and the options."""
        return {"kind": self.kind, **self.options()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Normalizer":
        """Recreates a normalizer from `to_dict`.

        Raises:
            ConfigError: for an unknown kind.
        """
        options = dict(values)
        kind = options.pop("kind", None)
        if kind not in Normalizer.kinds:
            raise ConfigError(f"normalizer: no kind {kind!r}, known are {', '.join(Normalizer.kinds)}")
        return Normalizer.kinds[kind](**options)


class NFC(Normalizer):
    """Unicode normalization form C."""

    kind = "nfc"

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The text in NFC."""
        return nfc(text)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets as in `nfc_offsets`."""
        return nfc_offsets(text)

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut before any character that never joins the one before it."""
        return text[cut].isascii() or text[cut] not in joining()


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


def through(
    begins: np.ndarray, ends: np.ndarray, more_begins: np.ndarray, more_ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Composes the offsets of two changes: from the twice changed text to the original.

    A character with `begin == end` covers nothing of the text that it was made from, nor of the original.
    """
    if not len(begins):
        return more_begins, more_ends
    found = begins[np.minimum(more_begins, len(begins) - 1)]
    last = ends[np.maximum(more_ends - 1, 0)]
    return found, np.where(more_begins == more_ends, found, last)
