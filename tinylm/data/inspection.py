"""Figures of a corpus before anything is trained: sizes, lengths, duplicates, invalid text, parts, samples.

The corpus is read once, in bounded memory: eight bytes per document to find duplicates, and the excerpts of the longest
documents and of the samples.
"""

import heapq
import random
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from tinylm.data.corpora.base import Corpus, Place
from tinylm.data.lengths import Lengths
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.base import END_OF_TEXT
from tinylm.tokenizer.fast.blocks import Block, Packer
from tinylm.workers import map_in_order

SHOWN = 240  # characters kept of a document
LISTED = 20  # files with invalid bytes that are kept


@dataclass
class Amount:
    """The size of a corpus or of a part."""

    documents: int = 0  # in a part that holds a piece of a document, that piece counts too
    bytes: int = 0  # of UTF-8
    characters: int = 0
    tokens: int | None = None  # with the tokens between documents; None without a tokenizer


@dataclass(frozen=True)
class Example:
    """A document to show."""

    place: Place
    length: int  # in `Inspection.unit`
    begin: str  # its first characters


@dataclass(frozen=True)
class Invalid:
    """Bytes that are not UTF-8."""

    place: Place
    offset: int  # of the first such byte: in the file, or in the text of the record


@dataclass
class Inspection:
    """Figures of a corpus.

    Attributes:
        corpus: its name
        stored_bytes: size of its files as they are stored; None for a generated corpus
        total: the size of all documents
        parts: the size of each part
        unit: of lengths: tokens, or characters without a tokenizer
        lengths: number of documents by length
        num_duplicates: documents that are equal to an earlier one
        num_empty: records without text, which are left out
        num_invalid: documents with bytes that are not UTF-8
        invalid: the first of these in each file, of up to `LISTED` files
        longest: the longest documents, the longest first
        samples: random documents, in their order
        train_windows: rows in an epoch of training, if the corpus has short documents and the context is known
    """

    corpus: str
    unit: str
    stored_bytes: int | None = None
    total: Amount = field(default_factory=Amount)
    parts: dict[str, Amount] = field(default_factory=dict)
    lengths: Lengths = field(default_factory=Lengths)
    num_duplicates: int = 0
    num_empty: int = 0
    num_invalid: int = 0
    invalid: list[Invalid] = field(default_factory=list)
    longest: list[Example] = field(default_factory=list)
    samples: list[Example] = field(default_factory=list)
    train_windows: int | None = None

    @property
    def duplicate_share(self) -> float:
        """Share of the documents that are equal to an earlier one."""
        return self.num_duplicates / max(self.total.documents, 1)

    def sequences(self, context: int) -> float | None:
        """Training sequences in an epoch, about; None without a tokenizer."""
        tokens = next(iter(self.parts.values())).tokens
        return None if tokens is None else max(self.train_windows or tokens / context, 1)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        names = [each.name for each in fields(self) if each.name != "lengths"]
        return {name: _plain(getattr(self, name)) for name in names} | {"lengths": self.lengths.to_dict()}


def _plain(value: Any) -> Any:
    """Dataclasses and places as plain values."""
    if isinstance(value, Place):
        return str(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)} if is_dataclass(value) else value


def inspect_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer | None = None,
    *,
    context: int | None = None,
    num_longest: int = 5,
    num_samples: int = 3,
    seed: int = 0,
) -> Inspection:
    """Reads a corpus and counts.

    Invalid bytes are found in a corpus opened with `errors="surrogateescape"`, and counted as U+FFFD, as training with
    `data.errors=replace` has them.

    Args:
        corpus: an open corpus
        tokenizer: counts tokens; None for none
        context: tokens of a training sequence
        num_longest: number of the longest documents to keep
        num_samples: number of random documents to keep
        seed: of these

    Raises:
        DataError: if a record is malformed, or the tokenizer cannot encode the text.
    """
    reader = _Reader(corpus, tokenizer, context, num_longest, num_samples, seed)
    empty = corpus.num_empty
    with corpus.reading("inspecting"):
        reader.read()
    reader.figures.num_empty = corpus.num_empty - empty
    return reader.figures


@dataclass
class _Document:
    """A document that is being read; in two parts, if the split cuts it."""

    place: Place
    digest: Any = field(default_factory=lambda: blake2b(digest_size=8))
    begin: str = ""
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    invalid: int | None = None  # offset


class _Reader:
    """Reads a corpus into an `Inspection`. Arguments as in `inspect_corpus`."""

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer | None, context: int | None, longest: int, samples: int, seed: int
    ) -> None:
        self._corpus, self._tokenizer, self._context = corpus, tokenizer, context or 1
        self.figures = Inspection(corpus.name, "characters" if tokenizer is None else "tokens")
        self.figures.parts = {part: Amount(tokens=None if tokenizer is None else 0) for part in corpus.parts}
        if corpus.unit == "B":
            self.figures.stored_bytes = corpus.size()
        if corpus.short_documents and context and tokenizer:
            self.figures.train_windows = 0
        self._keeps_bytes = tokenizer is not None and tokenizer.kind == "byte"
        self._num_longest, self._num_samples, self._random = longest, samples, random.Random(seed)
        self._hashes = array("Q")
        self._longest: list[tuple[int, int, Example]] = []  # (length, -number, example): a heap
        self._samples: list[tuple[int, Example]] = []  # (number, example)
        self._counted: _Document | None = None  # the document of the piece that was counted last

    def read(self) -> None:
        """Reads all documents."""
        (self._read_pieces if self._tokenizer is None else self._encode_pieces)()
        self._finish()
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        hashes.sort()
        figures, parts = self.figures, self.figures.parts.values()
        figures.num_duplicates = int((hashes[1:] == hashes[:-1]).sum())
        figures.longest = [example for *_, example in sorted(self._longest, key=lambda each: each[:2], reverse=True)]
        figures.samples = [example for _, example in sorted(self._samples, key=lambda each: each[0])]
        figures.total.bytes = sum(part.bytes for part in parts)
        figures.total.characters = sum(part.characters for part in parts)
        if self._tokenizer is not None:
            figures.total.tokens = sum(part.tokens or 0 for part in parts)

    # --- reading

    def _pieces(self) -> Iterator[tuple[str, _Document, Iterable[str]]]:
        """(part, document, text of the piece of the document that lies in the part)."""
        last = None
        for part, chunks in self._corpus.items():
            place = self._corpus.place or Place(
                self._corpus.name, "document", len(self._hashes) + (last is not None) + 1
            )
            if last is None or last.place != place:
                self._end(last)
                last = _Document(place)
            self.figures.parts[part].documents += 1
            yield part, last, self._text(self.figures.parts[part], last, chunks)
        self._end(last)

    def _text(self, amount: Amount, document: _Document, chunks: Iterable[str]) -> Iterator[str]:
        """The chunks of a piece, counted; invalid bytes become U+FFFD."""
        for chunk in chunks:
            text = chunk
            try:
                data = chunk.encode()
            except UnicodeEncodeError as error:
                if document.invalid is None:
                    document.invalid = document.bytes + len(chunk[: error.start].encode())
                data = _escaped(chunk)
                text = data.decode(errors="replace")
            if len(document.begin) < SHOWN:
                document.begin += text[: SHOWN - len(document.begin)]
            document.digest.update(data)
            for each in (amount, document):
                each.bytes += len(data)
                each.characters += len(text)
            yield chunk if self._keeps_bytes else text

    def _end(self, document: _Document | None) -> None:
        """Records the facts of a document once it has been read."""
        if document is None:
            return
        self._hashes.append(int.from_bytes(document.digest.digest(), "big"))
        if document.invalid is not None:
            self.figures.num_invalid += 1
            listed = self.figures.invalid
            if len(listed) < LISTED and all(each.place.file != document.place.file for each in listed):
                listed.append(Invalid(document.place, document.invalid))

    def _read_pieces(self) -> None:
        """Reads all pieces without a tokenizer."""
        for _, document, text in self._pieces():
            for _ in text:
                pass
            self._count(document)

    def _encode_pieces(self) -> None:
        """Reads all pieces, and encodes them in several processes."""
        tokenizer = self._tokenizer
        assert tokenizer is not None
        if tokenizer.end_of_text is None:
            tokenizer = tokenizer.with_special_tokens([END_OF_TEXT])
        packer, waiting = Packer(tokenizer.safe_cut), deque[tuple[str, _Document]]()

        def blocks() -> Iterator[Block]:
            for part, document, text in self._pieces():
                yield from packer.add(text)
                waiting.append((part, document))
            yield from packer.rest(end=True)

        held = 0  # tokens of a piece that is not complete
        for ids in map_in_order(tokenizer.encode_packed, blocks(), processes=None, alone=8):
            ends = np.flatnonzero(ids == tokenizer.end_of_text)
            for count in (np.diff(ends, prepend=-1) - 1).tolist():
                self._count_tokens(*waiting.popleft(), count + held)
                held = 0
            held += len(ids) - (int(ends[-1]) + 1 if len(ends) else 0)

    # --- counting

    def _count_tokens(self, part: str, document: _Document, count: int) -> None:
        """Counts the tokens of a piece."""
        amount, figures = self.figures.parts[part], self.figures
        amount.tokens = (amount.tokens or 0) + count + self._corpus.separated
        document.tokens += count
        if figures.train_windows is not None and part == self._corpus.parts[0]:
            figures.train_windows += -(-(count + 1) // self._context)
        self._count(document)

    def _count(self, document: _Document) -> None:
        """Notes that a piece of a document was counted. A previous piece of another document is then complete."""
        if self._counted is not document:
            self._finish()
            self._counted = document

    def _finish(self) -> None:
        """Adds the length of the complete document; keeps it if it is one of the longest or of the samples."""
        document, figures, number = self._counted, self.figures, self.figures.total.documents
        if document is None:
            return
        figures.total.documents += 1
        length = document.characters if self._tokenizer is None else document.tokens
        figures.lengths.add(length)
        example = Example(document.place, length, document.begin)
        heapq.heappush(self._longest, (length, -number, example))
        if len(self._longest) > self._num_longest:
            heapq.heappop(self._longest)
        slot = number if number < self._num_samples else self._random.randrange(number + 1)
        if slot < self._num_samples:
            self._samples[slot : slot + 1] = [(number, example)]


def _escaped(text: str) -> bytes:
    """The bytes of a text with lone surrogates, kept by `surrogateescape` or from half of a pair in JSON."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
