"""Corpus, the interface of every text source, and what the sources that read files share.

A corpus is split into parts: `train`, `val` and, with three fractions, `test`. A part is a sequence of documents, and a
document a sequence of chunks, so a file may be larger than memory. Text is UTF-8 and never normalized: the joined
chunks are the file, character for character.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinylm.errors import ConfigError, notice
from tinylm.files import read_chunks, sha256_json
from tinylm.recognize import HEAD, foreign, markup

PARTS = ("train", "val", "test")
REPAIR = "repair the file, set data.errors=replace, or use the byte tokenizer"


@dataclass(frozen=True)
class Reading:
    """Options of reading documents out of files.

    Attributes:
        field: the field or column of a record that is the document; `a.b` is field b of the object in field a
        separator: the text between the documents of a plain text file; None: `<|endoftext|>` if the file has it; an
            empty string: the file is one document
        include: patterns of the files to take from a folder
        exclude: patterns of the files to leave out
        deduplicate: whether only the first of equal documents is kept
    """

    field: str = "text"
    separator: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    deduplicate: bool = False


class Corpus(ABC):
    """A text in parts; the base class of a corpus of one's own, which defines `documents` and may set the attributes.

    Attributes:
        name: the value of `data.corpus`. Default: the name of the class
        parts: `("train",)`, `("train", "val")` or `("train", "val", "test")`
        fingerprint: SHA-256 of everything that determines the text of the parts. Default: that of the texts, which
            are read for it
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
        """Names its caches. Those of an earlier text by this name are remarked on as outdated."""
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


class FileCorpus(Corpus):
    """UTF-8 files. Opening reads them once, to check them, to count characters and for the fingerprint.

    Attributes:
        kind: part of the fingerprint
        paths: the files
        lengths: characters in each file
    """

    kind: str

    def __init__(self, name: str, paths: list[Path], split: tuple[float, ...], errors: str = "strict") -> None:
        """Raises DataError at the first byte that is not UTF-8, unless `errors` allows it."""
        self.name, self.paths, self.split, self.errors = name, paths, split, errors
        self.parts = PARTS[: len(split)]
        scans = [_scan(path, errors) for path in paths]
        self.lengths = [length for _, length, _ in scans]
        self.fingerprint = sha256_json([self.kind, [digest for digest, _, _ in scans], self._split_key(), errors])
        remarks = [f"{path}: {remark}" for path, (_, _, remark) in zip(paths, scans, strict=True) if remark]
        for remark in remarks[:1]:
            notice(remark + (f" ({len(remarks) - 1:,} more files are alike)" if len(remarks) > 1 else ""))

    def _split_key(self) -> tuple:
        return self.split


def _scan(path: Path, errors: str) -> tuple[str, int, str | None]:
    """The SHA-256 of a file's text, its number of characters, and a remark on its format if it needs one."""
    digest, length, remark = hashlib.sha256(), 0, None
    for text in read_chunks(path, errors, digest, remedy=REPAIR):
        if not length:
            remark = markup(path, text)
            if errors == "surrogateescape":  # any other refuses it
                remark = remark or foreign(path, text[:HEAD].encode("utf-8", errors))
        length += len(text)
    return digest.hexdigest(), length, remark


def split_documents(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """The nonempty texts between separators, which may straddle chunks."""
    tail = ""
    for chunk in chunks:
        *complete, tail = (tail + chunk).split(separator)
        yield from filter(None, complete)
    if tail:
        yield tail


def check_split(split: Iterable[float]) -> tuple[float, ...]:
    """Returns a split as a tuple; raises ConfigError unless it is one to three positive fractions that sum to 1."""
    split = tuple(split)
    if len(split) not in (1, 2, 3) or not all(part > 0 for part in split) or not abs(sum(split) - 1) < 1e-9:
        raise ConfigError(f"data.split must be one to three positive fractions that sum to 1, got {list(split)}")
    return split
