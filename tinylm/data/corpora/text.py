"""TextCorpus: documents of files of any format, split by characters if they are few, else by documents."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tinylm.data.corpora.base import MANY, PARTS, Corpus, cut, part_of
from tinylm.data.corpora.documents import Document, Documents, digest, held, remark, tell
from tinylm.data.corpora.metered import total_size
from tinylm.data.download import Download
from tinylm.data.records import DEFAULT, END, Reading
from tinylm.data.sources import Source
from tinylm.errors import ConfigError, DataError
from tinylm.files import sha256_json

TINYSHAKESPEARE = Download(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
PEEK = 64 << 20  # most characters of text files that are read to open a corpus


class TextCorpus(Corpus):
    """The documents of files.

    Fewer than 100 documents are split by characters: the bounds between parts are rounded down to whole characters of
    all documents in order, and a document may be divided. If there are more, each is in one part, chosen by its
    SHA-256.

    Opening reads 100 documents at most, and no more than 64 million characters of plain text files.
    """

    def __init__(
        self,
        name: str,
        sources: list[Source],
        split: tuple[float, ...],
        errors: str = "strict",
        reading: Reading = DEFAULT,
        cache_dir: Path = Path(),
    ) -> None:
        """Reads the first documents.

        Raises:
            ConfigError: for an option that does nothing with these files.
            DataError: if the files are empty, or one of those read is malformed.
        """
        self.name, self.split, self.parts = name, split, PARTS[: len(split)]
        sources = self.metered(sources)
        self.contents = Documents(self, sources, reading, errors, cache_dir)
        self.sources, self.num_groups = sources, len(self.contents.groups)
        self._remarks: list[str] = []
        counted = self._peek()
        tell(self._remarks, "more files are alike")
        divided = self.contents.divided
        if reading.separator is None:
            hint = f'{END} separates documents; set data.separator="" to read it as text'
            tell([f"{source.url}: {hint}" for source in divided], "more files have it")
        self.few = counted is not None
        whole = self.few and self.contents.plain and not divided
        if whole and reading.separator:
            raise ConfigError(f"data.separator: {name}: does not contain {reading.separator!r}; leave it out")
        self.separated = not whole or len(sources) > 1
        if reading.deduplicate and not self.separated:
            raise ConfigError(f"data.deduplicate: {name}: is a single document; leave it out")
        with self.reading("checking"):
            if whole and not reading.deduplicate:
                content = ["files", self.contents.text_digests()]
            else:
                content = ["documents", self.contents.fingerprints(), self.contents.options()]
        self.fingerprint = self.contents.key = sha256_json([*content, split, errors])
        self._counted = None if reading.deduplicate else counted
        if counted is not None and not any(map(any, counted)):
            raise DataError(f"data.corpus: {name}: is empty")

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, or the pieces of documents that lie within it."""
        return (document for found, document in self.items() if found == part)

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all."""
        for number in range(self.num_groups) if group is None else [group]:
            yield from self._pieces(number) if self.few else self._whole(number)

    def _whole(self, group: int) -> Iterator[tuple[str, Iterable[str]]]:
        for _, document in self.contents.read(group):
            document = held(document)
            if not isinstance(document, list) or not (document[0] == "" or document[0].isspace()):
                yield part_of(digest(document), self.split, self.parts), document

    def size(self, part: str | None = None) -> int | None:
        """Bytes of the files that are read for a part, or for all. Divided documents are read up to its end."""
        whole = total_size(self.sources)
        if whole is None or part is None or not self.few:
            return whole
        return whole * self._bounds[self.parts.index(part)][1] // max(self._bounds[-1][1], 1)

    # --- few documents, split by characters

    def _pieces(self, group: int) -> Iterator[tuple[str, Iterable[str]]]:
        start = sum(map(sum, self._lengths[:group]))
        for length, (_, document) in zip(self._lengths[group], self.contents.read(group), strict=True):
            for part, (begin, end) in zip(self.parts, self._bounds, strict=True):
                if begin < start + length and end > start:
                    yield part, _characters(document, max(begin - start, 0), end - start)
            start += length

    @cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        """The first character of each part and the one after its last."""
        return cut(sum(map(sum, self._lengths)), self.split)

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """The characters of each document of each group."""
        if self._counted is not None and all(length >= 0 for group in self._counted for length in group):
            return self._counted
        with self.reading("measuring"):
            groups = range(self.num_groups)
            return [[self._length(file, found) for file, found in self.contents.read(group)] for group in groups]

    def _length(self, file: int, document: Document) -> int:
        """The characters of a document. Those of a whole file are remembered."""

        def count() -> int:
            return sum(map(len, document))

        if isinstance(document, list):
            return count()
        return self.sources[file].remembered(f"characters {self.contents.errors}", count)

    def _peek(self) -> list[list[int]] | None:
        """The characters of each document of each group, -1 if a text is long; None if there are many documents."""
        lengths: list[list[int]] = []
        budget, count = PEEK, 0
        for group in range(self.num_groups):
            lengths.append([])
            for file, document in self.contents.read(group, duplicates=True):
                length, blank = self._measure(file, document, budget)
                budget -= length
                count += not blank
                lengths[-1].append(length if budget >= 0 or isinstance(document, list) else -1)
                if count == MANY:
                    return None
        return lengths

    def _measure(self, file: int, document: Document, limit: int) -> tuple[int, bool]:
        """The characters of a document, not far beyond a limit if it is a whole file, and whether it is blank."""
        length, blank, source = 0, True, self.contents.sources[file]
        for chunk in document:
            if not length and not isinstance(document, list):
                found = remark(source, self.contents.formats[file], chunk, self.contents.errors)
                self._remarks += [f"{source.url}: {found}"] if found else []
            length, blank = length + len(chunk), blank and chunk.isspace()
            if length > limit and not isinstance(document, list):
                break
        return length, blank


def _characters(document: Document, begin: int, end: int) -> Iterator[str]:
    """Characters `begin` to `end` of a document, in chunks."""
    for text in document:
        if piece := text[max(begin, 0) : max(end, 0)]:
            yield piece
        begin, end = begin - len(text), end - len(text)
        if end <= 0:
            return
