"""LineCorpus: files in which each line is a document, such as names, titles or games."""

from collections.abc import Iterator
from pathlib import Path

from tinylm.data.corpora.base import FileCorpus, HashSplitCorpus, split_documents
from tinylm.data.download import Download
from tinylm.errors import DataError
from tinylm.files import read_chunks

FIRST_NAMES = Download(  # makemore's: the 32,033 most common first names given in the USA in 2018
    "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
    sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
)


class LineCorpus(HashSplitCorpus, FileCorpus):
    """Each line is a document, without its line ending; empty lines are skipped."""

    kind = "lines"

    def __init__(self, name: str, paths: list[Path], split: tuple[float, ...], errors: str = "strict") -> None:
        super().__init__(name, paths, split, errors)
        if next(self.all_documents(), None) is None:
            raise DataError(f"data.corpus: {name}: is empty")

    def all_documents(self) -> Iterator[str]:
        """The nonempty lines of all files."""
        for path in self.paths:
            lines = split_documents(read_chunks(path, self.errors, report=self.report), "\n")
            yield from filter(None, (line.removesuffix("\r") for line in lines))
