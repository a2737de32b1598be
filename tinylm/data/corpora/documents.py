"""Documents: the documents in files of any format, in groups that can be read independently of each other."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from tinylm.data.corpora.metered import Metered, Place
from tinylm.data.records import END, TEXT, FileText, Format, Reading, decoded, find_format, find_separator
from tinylm.data.sources import Source
from tinylm.errors import ConfigError, notice
from tinylm.files import atomic_write, locked, sha256_json
from tinylm.recognize import BOM, HEAD, foreign, markup

GROUP = 256 << 20  # stored bytes of the files of a group
SMALL = 4  # chunks of a file that are held in memory

Document = list[str] | FileText


class Documents:
    """The documents of files, in order.

    Empty records, and blank texts between separators, are left out, as are repeated documents with
    `reading.deduplicate`. One pass over all files finds the repeated ones and stores them in the cache, so that a group
    can be read without the groups before it. This takes 16 bytes of memory per document, and 24 more during sorting.

    Attributes:
        sources: the files
        formats: the format of each
        groups: the numbers of the files in each group
        key: identifies documents and options in the cache; set by the corpus
    """

    key: str

    def __init__(
        self,
        corpus: Metered,
        sources: list[Source],
        reading: Reading,
        errors: str,
        cache_dir: Path,
        stories: bool = False,
    ) -> None:
        """Finds the formats of the files.

        Args:
            corpus: receives the progress of reading, and the place of each document
            sources: the files
            reading: options
            errors: treatment of bytes that are not UTF-8
            cache_dir: the cache
            stories: whether text files always have `<|endoftext|>` between documents and blank documents are kept,
                unless `reading.separator` is another

        Raises:
            ConfigError: for an option that none of the formats has.
        """
        self.corpus, self.name = corpus, corpus.name
        self.sources, self.reading, self.errors = sources, reading, errors
        self.cache_dir, self._stories = cache_dir, stories and reading.separator is None
        self.formats: list[Format] = [find_format(source, reading, errors) for source in sources]
        self.groups = _groups(sources)
        self._separators: dict[int, str | None] = {}
        self._told = False
        if self.plain and reading.field != Reading.field:
            raise ConfigError("data.field: is for records (JSON, CSV, Parquet, Arrow); leave it out")
        if reading.separator and all(each.records for each in self.formats):
            raise ConfigError("data.separator: is for plain text; a record is a document, leave it out")

    @property
    def plain(self) -> bool:
        """Whether all files are plain text."""
        return not any(each.records for each in self.formats)

    @property
    def divided(self) -> list[Source]:
        """The text files read so far that have separators."""
        return [self.sources[file] for file, separator in self._separators.items() if separator]

    def separator(self, file: int) -> str | None:
        """The separator of the documents in a file; None for records and for a text that is one document."""
        if self.formats[file] is not TEXT:
            return None
        if file not in self._separators:
            reading = Reading(separator=END) if self._stories else self.reading
            self._separators[file] = find_separator(self.sources[file], reading)
        return self._separators[file]

    def read(self, group: int, duplicates: bool = False) -> Iterator[tuple[int, Document]]:
        """(file, document) of the documents of a group; with or without those that occurred before."""
        dropped = frozenset() if duplicates or not self.reading.deduplicate else self._dropped[group]
        for number, found in enumerate(self._all(group)):
            if number not in dropped:
                yield found

    def _all(self, group: int) -> Iterator[tuple[int, Document]]:
        records = empty = 0
        for file in self.groups[group]:
            url, kind = self.sources[file].url, "record" if self.formats[file].records else "document"
            for number, document in enumerate(self._read_file(file), start=1):
                text = document[0] if isinstance(document, list) else None
                blank = text == "" or (text is not None and text.isspace() and not self._stories)
                if self.formats[file].records:
                    records, empty = records + 1, empty + blank
                    self.corpus.num_empty += blank
                if not blank:
                    self.corpus.place = Place(url, kind, number) if isinstance(document, list) else Place(url)
                    yield file, document
        if empty and not self._told:
            self._told = True
            notice(f"{self.name}: {empty:,} of {records:,} records are empty and are skipped")

    def _read_file(self, file: int) -> Iterator[Document]:
        source, form, reading = self.sources[file], self.formats[file], self.reading
        if form is not TEXT:
            yield from form.read(source, reading, self.errors)  # pyright: ignore[reportReturnType]
        elif (separator := self.separator(file)) is None:
            yield FileText(source, self.errors)
        else:
            yield from form.read(source, Reading(separator=separator), self.errors)  # pyright: ignore[reportReturnType]

    def fingerprints(self) -> list[list[str]]:
        """Format and fingerprint of each file."""
        pairs = zip(self.formats, self.sources, strict=True)
        return [[form.name, source.fingerprint()] for form, source in pairs]

    def text_digests(self) -> list[str]:
        """The SHA-256 of the text of each file, without a byte order mark."""
        return [_text_digest(source, self.errors) for source in self.sources]

    def options(self) -> list:
        """The options that determine the documents."""
        reading = self.reading
        return [None if self.plain else reading.field, reading.separator, reading.deduplicate]

    # --- duplicates

    @cached_property
    def _dropped(self) -> list[frozenset[int]]:
        """The numbers of the documents of each group that occurred before."""
        path = self.cache_dir / "duplicates" / f"{sha256_json(['duplicates', self.key])[:32]}.npy"
        found = _load(path)
        if found is None:
            with locked(path.with_suffix(".lock")):
                found = _load(path)  # another process may have found them meanwhile
                if found is None:
                    found = self._find_duplicates()
                    with atomic_write(path) as file:
                        np.save(file, found)
        return [frozenset(found[found[:, 0] == group, 1].tolist()) for group in range(len(self.groups))]

    def _find_duplicates(self) -> np.ndarray:
        """(group, number) of each document that is equal to an earlier one, (duplicates, 2)."""
        digests, counts = io.BytesIO(), []
        with self.corpus.reading("finding duplicates in"):
            for group in range(len(self.groups)):
                before = digests.tell()
                for _, document in self.read(group, duplicates=True):
                    digests.write(digest(document)[:16])
                counts.append((digests.tell() - before) // 16)
        halves = np.frombuffer(digests.getbuffer(), dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: among equal documents the first comes first
        halves = halves[order]
        later = np.sort(order[1:][(halves[1:] == halves[:-1]).all(axis=1)])
        notice(f"{self.name}: {len(later):,} of {len(order):,} documents occurred before and are left out")
        begins = np.cumsum([0, *counts])
        groups = np.searchsorted(begins, later, side="right") - 1
        return np.stack([groups, later - begins[groups]], axis=1).astype(np.int64)


def _load(path: Path) -> np.ndarray | None:
    """The array in a file; None if it is missing or damaged."""
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError):
        return None


def _groups(sources: list[Source]) -> list[list[int]]:
    """The numbers of consecutive files in each group."""
    groups: list[list[int]] = []
    filled = 0
    for number, source in enumerate(sources):
        size = GROUP if source.size is None else source.size
        if not groups or filled + size > GROUP:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += size
    return groups


def digest(document: Iterable[str]) -> bytes:
    """The SHA-256 of a document."""
    found = hashlib.sha256()
    for chunk in document:
        found.update(chunk.encode(errors="surrogateescape"))
    return found.digest()


def held(document: Document) -> Document:
    """The document in memory, if it is small, else as it is, to be read from its file again."""
    if isinstance(document, list):
        return document
    chunks = list(islice(document, SMALL))
    return ["".join(chunks)] if len(chunks) < SMALL else document


def _text_digest(source: Source, errors: str) -> str:
    with source.open() as file:
        marked = file.read(len(BOM)) == BOM
    if not marked:
        return source.fingerprint()
    found = hashlib.sha256()
    for text in decoded(source, "surrogateescape"):
        found.update(text.encode(errors="surrogateescape"))
    return found.hexdigest()


def remark(source: Source, form: Format, text: str, errors: str) -> str | None:
    """A remark on the content of a text file, judged by its beginning; None if there is nothing to remark."""
    if form is not TEXT:
        return None
    found = markup(Path(source.url), text)
    if found is None and errors == "surrogateescape":  # any other refuses it
        found = foreign(Path(source.url), text[:HEAD].encode("utf-8", errors))
    return found


def tell(remarks: list[str], others: str) -> None:
    """Prints the first of several remarks, and how many more there are."""
    for each in remarks[:1]:
        notice(each + (f" ({len(remarks) - 1:,} {others})" if len(remarks) > 1 else ""))
