"""Corpus, the interface of every text source, and what the sources that read files share.

A corpus is split into parts: `train`, `val` and, with three fractions, `test`. A part is a sequence of documents, and a
document a sequence of chunks, so a file may be larger than memory. Text is UTF-8 and never normalized: the joined
chunks are the file, character for character.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields
from fractions import Fraction
from itertools import accumulate, pairwise

from tinylm.data.corpora.metered import Metered, Place
from tinylm.data.records import REPAIR, Reading
from tinylm.errors import ConfigError

__all__ = [
    "MANY",
    "PARTS",
    "REPAIR",
    "Corpus",
    "HashSplitCorpus",
    "Place",
    "Reading",
    "check_split",
    "cut",
    "part_of",
    "refuse_options",
]

PARTS = ("train", "val", "test")
MANY = 100  # documents, from which on none is divided


class Corpus(Metered, ABC):
    """A text in parts, and the base class for a user's own corpus: define `documents`, and set attributes if needed.

    Attributes:
        name: the value of `data.corpus`. Default: the name of the class
        parts: `("train",)`, `("train", "val")` or `("train", "val", "test")`
        fingerprint: SHA-256 of everything that determines the text of the parts. Default: computed
            by reading the texts
        separated: whether there are several documents, which a special token should separate
        short_documents: whether documents are short and complete. Training windows then begin at a document, and
            evaluation reads each document from its start
        has_floor: whether `log_prob` is known, and with it the best possible loss
        num_groups: number of groups, runs of documents that are read independently of each other
    """

    name: str = ""
    parts: tuple[str, ...] = ("train", "val")
    fingerprint: str = ""
    separated: bool = True
    short_documents = False
    has_floor = False
    num_groups: int = 1

    @abstractmethod
    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, in order, as chunks. Read each document before asking for the next."""

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all groups in order; those of one part in order."""
        for part in self.parts:
            for document in self.documents(part):
                yield part, document

    @property
    def cache_name(self) -> str:
        """The name of its caches. A cache of an earlier text with this name is reported as outdated."""
        return self.name

    def texts(self) -> Iterator[str]:
        """All chunks of all parts, for a vocabulary of characters."""
        for _, document in self.items():
            yield from document

    def more(self, part: str) -> str:
        """The remedy for a part that is too short."""
        return "give it more of data.split"

    def log_prob(self, document: str) -> float:
        """The exact log probability of a document, in nats; defined where `has_floor`."""
        raise NotImplementedError(f"{self.name} does not know its own probabilities")


class HashSplitCorpus(Corpus):
    """Short documents, each assigned to a part by its SHA-256, so equal documents are always in the same part."""

    separated = short_documents = True
    split: tuple[float, ...]

    @abstractmethod
    def all_documents(self) -> Iterator[str]:
        """The documents of all parts."""

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of all documents, in one pass; parts alternate."""
        return ((self._part_of(text), [text]) for text in self.all_documents())

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part. All documents are read to find them."""
        return (document for found, document in self.items() if found == part)

    def _part_of(self, text: str) -> str:
        return part_of(hashlib.sha256(text.encode(errors="surrogateescape")).digest(), self.split, self.parts)


def part_of(digest: bytes, split: tuple[float, ...], parts: tuple[str, ...]) -> str:
    """The part of the document with this SHA-256."""
    fraction = int.from_bytes(digest[:7], "big") / 256**7
    bounds = [sum(split[: i + 1]) for i in range(len(split) - 1)]
    return parts[sum(fraction >= bound for bound in bounds)]


def refuse_options(reading: Reading, name: str, used: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for an option that does nothing with a corpus."""
    for field in fields(reading):
        if field.name not in used and getattr(reading, field.name) != field.default:
            raise ConfigError(f"data.{field.name}: does not work with {name}; leave it out")


def cut(total: int, split: tuple[float, ...]) -> list[tuple[int, int]]:
    """The first element of each part and the one after its last, where `total` elements are split in order.

    >>> cut(10, (0.6, 0.3, 0.1))
    [(0, 6), (6, 9), (9, 10)]
    """
    shares = accumulate(Fraction(str(fraction)) for fraction in split[:-1])  # exact: 0.6 + 0.3 is 0.9
    return list(pairwise([0, *(int(total * share) for share in shares), total]))


def check_split(split: Iterable[float]) -> tuple[float, ...]:
    """Returns a split as a tuple; raises ConfigError unless it is one to three positive fractions that sum to 1."""
    split = tuple(split)
    if len(split) not in (1, 2, 3) or not all(part > 0 for part in split) or not abs(sum(split) - 1) < 1e-9:
        raise ConfigError(f"data.split must be one to three positive fractions that sum to 1, got {list(split)}")
    return split
