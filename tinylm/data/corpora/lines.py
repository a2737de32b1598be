"""LineCorpus: files in which each line is a document, such as names, titles or games."""

import hashlib
from collections.abc import Iterator
from functools import partial

from tinylm.data.corpora.base import PARTS, HashSplitCorpus
from tinylm.data.corpora.documents import remark, tell
from tinylm.data.corpora.metered import Place, total_size
from tinylm.data.download import Download
from tinylm.data.records import TEXT, decoded, split_text
from tinylm.data.sources import Source
from tinylm.errors import DataError
from tinylm.files import sha256_json

FIRST_NAMES = Download(  # makemore's: the 32,033 most common first names given in the USA in 2018
    "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
    sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
)


class LineCorpus(HashSplitCorpus):
    """Each line is a document, without its line ending; empty lines are skipped.

    When files are opened for the first time, they are read to check them and to compute the fingerprint.
    """

    def __init__(self, name: str, sources: list[Source], split: tuple[float, ...], errors: str = "strict") -> None:
        """Raises DataError at the first byte that is not UTF-8, unless `errors` allows it."""
        self.name, self.sources, self.split, self.errors = name, self.metered(sources), split, errors
        self.parts = PARTS[: len(split)]
        with self.reading("checking"):
            digests = [each.remembered(f"lines {errors}", partial(self._digest, each)) for each in self.sources]
        heads = [(source, next(self._chunks(source), "")) for source in self.sources]
        remarks = [f"{source.url}: {found}" for source, head in heads if (found := remark(source, TEXT, head, errors))]
        self.fingerprint = sha256_json(["lines", digests, split, errors])
        tell(remarks, "more files are alike")
        if next(self.all_documents(), None) is None:
            raise DataError(f"data.corpus: {name}: is empty")

    def all_documents(self) -> Iterator[str]:
        """The nonempty lines of all files."""
        for source in self.sources:
            last = ""
            for number, line in enumerate(split_text(self._chunks(source), "\n"), start=1):
                if last := line.removesuffix("\r"):
                    self.place = Place(source.url, "line", number)
                    yield last
                else:
                    self.num_empty += 1
            self.num_empty -= not last  # the empty text after the last line ending is not a line

    def size(self, part: str | None = None) -> int | None:
        """Bytes of the files, all of which are read for any part."""
        return total_size(self.sources)

    def _digest(self, source: Source) -> str:
        """The SHA-256 of the text."""
        digest = hashlib.sha256()
        for _ in self._chunks(source, digest):
            pass
        return digest.hexdigest()

    def _chunks(self, source: Source, digest: "hashlib._Hash | None" = None) -> Iterator[str]:
        return decoded(source, self.errors, digest=digest, records=False)
