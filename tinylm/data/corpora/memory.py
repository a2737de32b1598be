"""Corpora from Python: texts in memory, a corpus of the user's own class, and one text validated on another."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NoReturn

from tinylm.data.corpora.base import MANY, PARTS, Corpus, HashSplitCorpus, Reading, cut
from tinylm.data.corpora.items import Items
from tinylm.data.records import END, split_documents
from tinylm.errors import ConfigError, DataError, notice
from tinylm.files import sha256_json

RULE = "documents(part) gives documents, each a str or an iterable of str"


class MemoryCorpus(HashSplitCorpus):
    """Texts of a Python object; each is a document, or several with a separator between them.

    Fewer than 100 documents are split by characters, and one may be divided. If there are more, each is in one part,
    chosen by its SHA-256. Opening reads all texts once, for the fingerprint.

    Args:
        source: the texts
        split: fractions of the parts
        reading: options; `field` is that of `source`

    Raises:
        ConfigError: for an option that does nothing with these texts.
        DataError: if there is no text, or an item is not a text.
    """

    short_documents = False

    def __init__(self, source: Items, split: tuple[float, ...], reading: Reading) -> None:
        self.source, self.split, self.parts, self.options = source, split, PARTS[: len(split)], reading
        self.name = source.name
        self._check_options()
        self._divided, self._count = False, -1
        digest, self._lengths = hashlib.sha256(), []
        for text in self.all_documents():
            self._lengths += [len(text)] if len(self._lengths) < MANY else []
            digest.update(hashlib.sha256(text.encode(errors="surrogateescape")).digest())
        if not self._lengths:
            raise DataError(f"{source.option}: {self.name}: is empty")
        if reading.separator and not self._divided:
            raise ConfigError(f"data.separator: no text has {reading.separator!r}; leave it out")
        if self._divided and reading.separator is None:
            notice(f'{self.name}: {END} separates documents; set data.separator="" to read it as text')
        self.separated = self._count > 1
        self.fingerprint = sha256_json(["memory", digest.hexdigest(), split])

    @property
    def cache_name(self) -> str:
        """A different name for each text, since no two texts from Python are versions of each other."""
        return f"python://{self.fingerprint[:8]}"

    def _check_options(self) -> None:
        reading, name = self.options, self.source.name
        for option, given in (("include", reading.include), ("exclude", reading.exclude)):
            if given:
                raise ConfigError(f"data.{option}: is for folders, and the corpus is {name}; leave it out")
        if self.source.records and reading.separator:
            raise ConfigError("data.separator: is for plain text; a record is a document, leave it out")
        if not self.source.uses_field and reading.field != Reading.field:
            raise ConfigError(f"data.field: is for records, and the corpus is {name}; leave it out")

    def all_documents(self) -> Iterator[str]:
        """The documents of all parts, without blank ones."""
        seen, count, blank = set(), 0, 0
        for number, value in enumerate(self.source, start=1):
            for text in self._divide(value, number):
                if not text or text.isspace():
                    blank += 1
                    continue
                if self.options.deduplicate:
                    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:16]
                    if digest in seen:
                        continue
                    seen.add(digest)
                count += 1
                yield text
        if self._count < 0:
            self._count = count
            if blank:
                notice(f"{self.name}: {blank:,} of {count + blank:,} texts are empty and are skipped")
        elif count != self._count:
            problem = f"gave {self._count:,} texts, and {count:,} when read again"
            raise DataError(f"{self.source.option}: {self.name}: {problem}; it must give the same each time")

    def _divide(self, value: Any, number: int) -> Iterable[str]:
        """The documents of a value."""
        if not isinstance(value, str):
            shown = "None" if value is None else f"a {type(value).__name__}"
            problem = f"{'record' if self.source.records else 'item'} {number} is {shown}, not a text"
            raise DataError(f"{self.source.option}: {self.name}: {problem}")
        separator = END if self.options.separator is None else self.options.separator
        if self.source.records or not separator or separator not in value:
            return [value]
        self._divided = True
        return split_documents([value], separator)

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of all documents, or of the pieces of a document that lie within a part."""
        return self._pieces() if self._count < MANY else super().items()

    def _pieces(self) -> Iterator[tuple[str, Iterable[str]]]:
        bounds, start = cut(sum(self._lengths), self.split), 0
        for text in self.all_documents():
            for part, (begin, end) in zip(self.parts, bounds, strict=True):
                if piece := text[max(begin - start, 0) : max(end - start, 0)]:
                    yield part, [piece]
            start += len(text)


class OwnCorpus(Corpus):
    """A corpus of the user's own class, checked as it is read.

    Its documents may be strings. A missing fingerprint is computed by reading its texts.

    Args:
        given: the corpus

    Raises:
        ConfigError: if an attribute is not what `Corpus` documents.
        DataError: if it gives something other than documents.
    """

    def __init__(self, given: Corpus) -> None:
        self.given = given
        self.name = given.name or type(given).__name__
        known = [PARTS[:count] for count in (1, 2, 3)]
        self._require("parts", given.parts in known, f"one of {', '.join(map(str, known))}")
        self._require("name", isinstance(given.name, str), "a string")
        self._require("fingerprint", isinstance(given.fingerprint, str), "a string")
        for attribute in ("separated", "short_documents", "has_floor"):
            self._require(attribute, isinstance(getattr(given, attribute), bool), "True or False")
        self.parts, self.separated, self.short_documents = given.parts, given.separated, given.short_documents
        self.has_floor, self.num_groups = given.has_floor, given.num_groups

    def _require(self, attribute: str, fine: bool, wanted: str) -> None:
        if not fine:
            value = getattr(self.given, attribute)
            raise ConfigError(f"data.corpus: {type(self.given).__name__}.{attribute} must be {wanted}, got {value!r}")

    @property
    def cache_name(self) -> str:
        """A different name for each text."""
        return f"python://{self.fingerprint[:8]}"

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The fingerprint of the corpus, or the SHA-256 of its texts."""
        if self.given.fingerprint:
            return self.given.fingerprint
        digests = []
        for part in self.parts:
            digest = hashlib.sha256()
            for document in self.documents(part):
                whole = hashlib.sha256()
                for chunk in document:
                    whole.update(chunk.encode(errors="surrogateescape"))
                digest.update(whole.digest())
            digests.append(digest.hexdigest())
        return sha256_json(["own", digests, self.separated, self.short_documents])

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, as chunks."""
        found = self.given.documents(part)
        if isinstance(found, str) or not isinstance(found, Iterable):
            self._refuse(f"documents({part!r}) gave {type(found).__name__}")
        return (self._checked(document) for document in found)

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all."""
        if type(self.given).items is Corpus.items:
            return super().items(group)
        return ((part, self._checked(document)) for part, document in self.given.items(group))

    def _checked(self, document: Iterable[str]) -> Iterable[str]:
        if isinstance(document, str):
            return [document]
        if not isinstance(document, Iterable):
            self._refuse(f"a document is {type(document).__name__}")
        return self._chunks(document)

    def _chunks(self, document: Iterable[str]) -> Iterator[str]:
        for chunk in document:
            if not isinstance(chunk, str):
                self._refuse(f"a chunk of a document is {type(chunk).__name__}")
            yield chunk

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(f"data.corpus: {self.name}: {problem}; {RULE}")

    def more(self, part: str) -> str:
        """The remedy for a part that is too short."""
        own = type(self.given).more is not Corpus.more
        return self.given.more(part) if own else f"documents({part!r}) must give more"

    def log_prob(self, document: str) -> float:
        """The exact log probability of a document, in nats."""
        return self.given.log_prob(document)


def own_corpus(given: Any, option: str = "data.corpus") -> Corpus | None:
    """A corpus of the user's own class, checked; one of tinylm's own as it is; None for an object that is not a corpus.

    Raises:
        ConfigError: for a class, or an object with `documents` whose class is not a subclass of Corpus.
    """
    kind = given.__name__ if isinstance(given, type) else type(given).__name__
    if isinstance(given, type):
        raise ConfigError(f"{option}: {kind} is a class; give an object of it, as {kind}(...)")
    if not isinstance(given, Corpus):
        if hasattr(given, "documents"):
            raise ConfigError(f"{option}: {kind} is not a subclass of tinylm.data.Corpus, in which {RULE}")
        return None
    return given if type(given).__module__.startswith("tinylm.") else OwnCorpus(given)


class ValidatedCorpus(Corpus):
    """A corpus to train on, and another to validate on.

    Args:
        train: its `train` part is used for training
        val: its `val` part is used for validation, or its `train` part if it has no other
    """

    def __init__(self, train: Corpus, val: Corpus) -> None:
        self.train, self.val, self.name = train, val, train.name
        self.fingerprint = sha256_json(["validated", train.fingerprint, val.fingerprint])
        self.separated = train.separated or val.separated
        self.short_documents = train.short_documents and val.short_documents
        self.has_floor = val.has_floor and self.short_documents
        self.num_groups = train.num_groups + val.num_groups
        self._val_part = "val" if "val" in val.parts else "train"

    @property
    def cache_name(self) -> str:
        """The name of the training corpus, unless it is from Python."""
        name = self.train.cache_name
        return f"python://{self.fingerprint[:8]}" if name.startswith("python://") else name

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, as chunks."""
        return iter(self.train.documents("train") if part == "train" else self.val.documents(self._val_part))

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all."""
        first = self.train.num_groups
        if group is None or group < first:
            yield from ((part, document) for part, document in self.train.items(group) if part == "train")
        if group is None or group >= first:
            items = self.val.items(None if group is None else group - first)
            yield from (("val", document) for part, document in items if part == self._val_part)

    def more(self, part: str) -> str:
        """The remedy for a part that is too short."""
        return "give a longer text" if part == "train" else "give a longer text as data.val"

    def log_prob(self, document: str) -> float:
        """The exact log probability of a validation document, in nats."""
        return self.val.log_prob(document)
