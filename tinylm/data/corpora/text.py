"""TextCorpus: text files one after the other, split by characters."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

from tinylm.data.corpora.base import FileCorpus, Place
from tinylm.data.download import Download
from tinylm.errors import DataError
from tinylm.files import read_chunks

TINYSHAKESPEARE = Download(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


class TextCorpus(FileCorpus):
    """Text files, each a document. The bounds between parts are rounded down to whole characters of all files."""

    kind = "files"

    def __init__(self, name: str, paths: list[Path], split: tuple[float, ...], errors: str = "strict") -> None:
        super().__init__(name, paths, split, errors)
        self.separated = len(paths) > 1
        if not sum(self.lengths):
            raise DataError(f"data.corpus: {name}: is empty")

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The pieces of the files that lie within a part."""
        begin, end = self._range(part)
        for path, length in zip(self.paths, self.lengths, strict=True):
            if begin < length and end > 0:
                self.place = Place(str(path))
                yield self._read_characters(path, max(begin, 0), end)
            begin, end = begin - length, end - length

    def _range(self, part: str) -> tuple[int, int]:
        """The first character of a part and the one after its last."""
        fractions = [Fraction(str(fraction)) for fraction in self.split[:-1]]  # exact: 0.6 + 0.3 is 0.9
        bounds = [int(sum(self.lengths) * share) for share in accumulate(fractions)]
        return list(pairwise([0, *bounds, sum(self.lengths)]))[self.parts.index(part)]

    def _read_characters(self, path: Path, begin: int, end: int) -> Iterator[str]:
        """Characters `begin` to `end` of a file, in chunks; reports their share of the bytes read."""
        blocks: list[int] = []  # bytes read since the last chunk
        for text in read_chunks(path, self.errors, report=blocks.append):
            if piece := text[max(begin, 0) : max(end, 0)]:
                self.report(sum(blocks) * len(piece) // len(text))
                yield piece
            blocks.clear()
            begin, end = begin - len(text), end - len(text)
            if end <= 0:
                return

    def size(self, part: str | None = None) -> int | None:
        """Bytes of the files that are read for a part, about as many as its characters, or for all."""
        whole, (begin, end) = super().size() or 0, (0, 1) if part is None else self._range(part)
        return whole if part is None else whole * (end - begin) // sum(self.lengths)
