"""PartsCorpus: data that comes with parts of its own, such as a folder with train.jsonl and val.jsonl."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinylm.data.corpora.base import PARTS, Corpus
from tinylm.data.corpora.documents import Documents
from tinylm.data.corpora.metered import total_size
from tinylm.data.records import DEFAULT, FORMATS, Reading
from tinylm.data.sources import Source
from tinylm.errors import DataError
from tinylm.files import sha256_json

OWN_PARTS = re.compile(r"(train|val|valid|validation|test)(-\d+-of-\d+)?\.[a-z0-9.]+", re.IGNORECASE)
PROSE = (".txt", ".text", ".md")  # not .py: a folder of source code may have train.py and val.py
NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class PartsCorpus(Corpus):
    """A training and a validation part, and perhaps one for `test`, each with files of its own.

    A text file has documents between `<|endoftext|>`, unless `reading.separator` is another. Without files for
    `test`, and with three fractions, every other validation document goes to `test`.
    """

    separated = True

    def __init__(
        self,
        name: str,
        files: dict[str, list[Source]],
        split: tuple[float, ...],
        errors: str = "strict",
        reading: Reading = DEFAULT,
        cache_dir: Path = Path(),
    ) -> None:
        """Finds the formats of the files, and reads the first document of each part.

        Raises:
            ConfigError: for an option that does nothing with these files.
            DataError: if a part is empty or malformed.
        """
        self.name = name
        self.parts = PARTS[: max(len(split), len(files))]  # the fractions do not matter
        self.files = files = {part: self.metered(found) for part, found in files.items()}
        sources = [source for part in files.values() for source in part]
        self._part_of = [part for part, found in files.items() for _ in found]
        self.contents = Documents(self, sources, reading, errors, cache_dir, stories=True)
        self.num_groups = len(self.contents.groups)
        with self.reading("checking"):
            if self.contents.plain and reading.separator is None and not reading.deduplicate:
                content = ["tinystories", self.contents.text_digests()]
            else:
                content = ["parts", self._part_of, self.contents.fingerprints(), self.contents.options()]
        self.fingerprint = self.contents.key = sha256_json([*content, self.parts, errors])
        for part in files:
            if next(self._documents(part, duplicates=True), None) is None:
                raise DataError(f"data.corpus: {name}: its {part} part is empty")

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part."""
        return self._documents(part, duplicates=False)

    def _documents(self, part: str, duplicates: bool) -> Iterator[Iterable[str]]:
        home = part if part in self.files else "val"
        for number, files in enumerate(self.contents.groups):
            if any(self._part_of[file] == home for file in files):
                yield from (document for found, document in self._group(number, duplicates) if found == part)

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all."""
        for number in range(self.num_groups) if group is None else [group]:
            yield from self._group(number, duplicates=False)

    def _group(self, number: int, duplicates: bool) -> Iterator[tuple[str, Iterable[str]]]:
        shared = len(self.files) < len(self.parts)
        last, count = -1, 0
        for file, document in self.contents.read(number, duplicates):
            count = count + 1 if file == last else 0
            last, part = file, self._part_of[file]
            yield "test" if shared and part == "val" and count % 2 else part, document

    def size(self, part: str | None = None) -> int | None:
        """Bytes of the files that are read for a part, or for all."""
        homes = self.files if part is None else [part if part in self.files else "val"]
        return total_size(source for home in homes for source in self.files[home])

    def more(self, part: str) -> str:
        """The remedy for a part that is too short."""
        return f"put more text into {self.files[part if part in self.files else 'val'][-1].url}"


def own_parts(folder: str, reading: Reading, cache_dir: Path) -> dict[str, list[Source]] | None:
    """The files of the parts of a folder that has `train.*` and `val.*` in one format; None for any other folder.

    Raises:
        DataError: if a part has files of several formats.
    """
    folder = os.path.expanduser(folder)  # noqa: PTH111 (as in globs.py)
    if reading.include or reading.exclude or not os.path.isdir(folder):  # noqa: PTH112
        return None
    parts: dict[str, list[Source]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        found = OWN_PARTS.fullmatch(name)
        source = Source(os.path.join(folder, name), cache_dir=cache_dir)  # noqa: PTH118
        if found and (source.suffix in FORMATS or source.suffix in PROSE):
            parts.setdefault(NAMES[found[1].lower()], []).append(source)
    if "train" not in parts or "val" not in parts:
        return None
    for files in parts.values():
        if len({source.suffix for source in files}) > 1 or (len(files) > 1 and not _numbered(files)):
            names = ", ".join(Path(source.url).name for source in files)
            raise DataError(f"data.corpus: {folder}: has {names} for one part; keep one of them")
    return {part: parts[part] for part in PARTS if part in parts}


def _numbered(files: list[Source]) -> bool:
    return all(re.match(r"[a-z]+-\d+-of-\d+\.", Path(source.url).name, re.IGNORECASE) for source in files)
