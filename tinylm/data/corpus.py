"""Where text comes from: the built-in stories, other grammars, files, globs and URLs, by name.

A corpus is split into parts (`train`, `val` and, with three fractions, `test`) and gives each part as documents, each
document as chunks of text, so that a file may be larger than memory. Text is UTF-8 and nothing is normalized: what
comes out is what went in, character for character.
"""

import glob
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tinylm.data.download import Download, download
from tinylm.data.grammar.grammar import Grammar, load_grammar
from tinylm.data.grammar.stories import COUNT, story_grammar, write_text
from tinylm.errors import ConfigError, DataError, MissingInputError, did_you_mean
from tinylm.files import read_chunks, sha256_json

PARTS = ("train", "val", "test")
NAMES = ("stories", "names", "tinyshakespeare", "tinystories")

TINYSHAKESPEARE = Download(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
FIRST_NAMES = Download(  # the 32,033 commonest of children born in the USA in 2018, as makemore has them
    "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
    sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
)
_HUB = "https://huggingface.co/datasets/roneneldan/TinyStories"
TINYSTORIES = tuple(
    Download(
        f"{_HUB}/resolve/main/TinyStoriesV2-GPT4-{part}.txt", pointer=f"{_HUB}/raw/main/TinyStoriesV2-GPT4-{part}.txt"
    )
    for part in ("train", "valid")
)
SEPARATOR = "<|endoftext|>"  # between the stories of TinyStories' files
SAMPLE = ("train.txt", "val.txt")  # of a folder that tinylm prepare tinystories wrote


class Corpus(ABC):
    """A text in parts.

    Attributes:
        name: what the user calls it
        parts: `("train", "val")` or `("train", "val", "test")`
        separated: whether there are several documents, so that a token between them is wanted
        whole: whether documents are short and complete: training windows begin with one, and each is evaluated from
            its start
        has_floor: whether `log_prob` is known, and with it the best loss that any model could reach
    """

    name: str
    parts: tuple[str, ...]
    separated: bool
    whole = False
    has_floor = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the text of the parts."""

    @abstractmethod
    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, in order; each as chunks, to be read before the next document is asked for."""

    def items(self) -> Iterator[tuple[str, Iterable[str]]]:
        """All documents with their parts, those of a part in order; to be read as `documents` says."""
        for part in self.parts:
            for document in self.documents(part):
                yield part, document

    def texts(self) -> Iterator[str]:
        """All chunks of all parts: what a vocabulary is taken from."""
        for _, document in self.items():
            yield from document

    def log_prob(self, document: str) -> float:
        """The log probability of a document under what wrote it, in nats; only where `has_floor`."""
        raise NotImplementedError(f"{self.name} does not know its own probabilities")


def open_corpus(
    source: str, *, split: tuple[float, ...], cache_dir: Path, seed: int = 0, errors: str = "strict"
) -> Corpus:
    """The corpus of a name, path, glob or URL.

    Args:
        source: `stories`, `names`, `tinyshakespeare`, `tinystories`, a text file, a glob of text files, or a URL; also
            a grammar in YAML, `*.grammar.yaml`. `stories:20000` and `my.grammar.yaml:20000` say how many texts to
            generate; `lines:my.txt` takes every line for a text of its own. A folder with `train.txt` and `val.txt` is
            a sample of TinyStories (`tinylm.data.tinystories`)
        split: fractions of two or three parts
        cache_dir: where downloads are kept
        seed: of the generated stories
        errors: what to do with bytes that are not UTF-8: `strict`, `replace`, or `surrogateescape` to carry them along

    Raises:
        MissingInputError: if there is no such file, or a download cannot happen.
        DataError: if the text is empty or not UTF-8.
    """
    generated = re.fullmatch(r"(stories|.*\.grammar\.ya?ml)(?::(\d+))?", source)
    if generated:
        name, count = generated.groups()
        grammar = story_grammar() if name == "stories" else load_grammar(name)
        return GrammarCorpus(name, grammar, split, seed, COUNT if count is None else int(count))
    if source == "names":
        return LineCorpus(source, [download(FIRST_NAMES, cache_dir)], split, errors)
    if source == "tinyshakespeare":
        return FileCorpus(source, [download(TINYSHAKESPEARE, cache_dir)], split, errors)
    if source == "tinystories":
        return TinyStories([download(url, cache_dir) for url in TINYSTORIES], split, errors)
    if "://" in source:
        return FileCorpus(source, [download(Download(source), cache_dir)], split, errors)
    if all(os.path.isfile(os.path.join(source, name)) for name in SAMPLE):  # noqa: PTH113, PTH118
        return TinyStories([Path(source) / name for name in SAMPLE], split, errors, source)
    if source.startswith("lines:"):
        return LineCorpus(source, find_files(source.removeprefix("lines:")), split, errors)
    return FileCorpus(source, find_files(source), split, errors)


def find_files(source: str) -> list[Path]:
    """The files of a path or glob, in the order of their names.

    Raises:
        MissingInputError: if there are none.
    """
    found = [source] if os.path.isfile(source) else sorted(glob.glob(source, recursive=True))  # noqa: PTH113
    paths = [Path(path) for path in found if os.path.isfile(path)]  # noqa: PTH113 (a name too long is just not there)
    if not paths:
        hint = did_you_mean(source, NAMES) or f"; give a text file, a glob, a URL, or one of {', '.join(NAMES)}"
        raise MissingInputError(f"data.corpus: {source}: no such corpus or file{hint}")
    return paths


def check_split(split: Iterable[float]) -> tuple[float, ...]:
    """The fractions of the parts, checked.

    Raises:
        ConfigError: if they are not two or three positive fractions that sum to 1.
    """
    split = tuple(split)
    if len(split) not in (2, 3) or not all(part > 0 for part in split) or not abs(sum(split) - 1) < 1e-9:
        raise ConfigError(f"data.split must be two or three positive fractions that sum to 1, got {list(split)}")
    return split


class WholeTexts(Corpus):
    """Short documents, each of which decides its part by its SHA-256, so no two parts share one."""

    separated = whole = True
    split: tuple[float, ...]

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """As `Corpus`."""
        return (document for home, document in self.items() if home == part)

    @abstractmethod
    def items(self) -> Iterator[tuple[str, Iterable[str]]]:
        """As `Corpus`: everything is read once, and parts alternate."""

    def _part_of(self, text: str) -> str:
        """The same wherever the text stands, and however often."""
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        fraction = int.from_bytes(digest[:7], "big") / 256**7
        bounds = [sum(self.split[: i + 1]) for i in range(len(self.split) - 1)]
        return self.parts[sum(fraction >= bound for bound in bounds)]


class GrammarCorpus(WholeTexts):
    """Generated texts."""

    has_floor = True

    def __init__(self, name: str, grammar: Grammar, split: tuple[float, ...], seed: int, count: int = COUNT) -> None:
        self.name, self.grammar, self.parts = name, grammar, PARTS[: len(split)]
        self.split, self.seed, self.count = split, seed, count

    @property
    def fingerprint(self) -> str:
        """As `Corpus`."""
        return sha256_json(["grammar", self.grammar.fingerprint, self.seed, self.count, self.split])

    def items(self) -> Iterator[tuple[str, Iterable[str]]]:
        """As `WholeTexts`."""
        for number in range(self.count):
            text, _ = write_text(self.grammar, self.seed, number)
            yield self._part_of(text), [text]

    def log_prob(self, document: str) -> float:
        """As `Corpus`: exact."""
        return self.grammar.log_prob(document)


class LineCorpus(WholeTexts):
    """Text files of which each line is a document: names, titles, games.

    The line's end is not part of it, and empty lines are none.
    """

    def __init__(self, name: str, paths: list[Path], split: tuple[float, ...], errors: str = "strict") -> None:
        self.name, self.paths, self.parts = name, paths, PARTS[: len(split)]
        self.split, self.errors = split, errors
        self._scans = [scan(path, errors) for path in paths]
        if next(self.items(), None) is None:
            raise DataError(f"data.corpus: {name}: is empty")

    @property
    def fingerprint(self) -> str:
        """As `Corpus`."""
        return sha256_json(["lines", [found.sha256 for found in self._scans], self.split, self.errors])

    def items(self) -> Iterator[tuple[str, Iterable[str]]]:
        """As `WholeTexts`."""
        for path in self.paths:
            for line in split_documents(read_chunks(path, self.errors), "\n"):
                if text := line.removesuffix("\r"):
                    yield self._part_of(text), [text]


class FileCorpus(Corpus):
    """Text files, one after the other; each is a document. Split by characters.

    The files are read once when the corpus is opened: to check them, to count their characters, and for the
    fingerprint.
    """

    def __init__(self, name: str, paths: list[Path], split: tuple[float, ...], errors: str = "strict") -> None:
        self.name, self.paths, self.split, self.errors = name, paths, split, errors
        self.parts = PARTS[: len(split)]
        self.separated = len(paths) > 1
        self._scans = [scan(path, errors) for path in paths]
        self.num_characters = sum(found.num_characters for found in self._scans)
        if not self.num_characters:
            raise DataError(f"data.corpus: {name}: is empty")

    @property
    def fingerprint(self) -> str:
        """As `Corpus`."""
        return sha256_json(["files", [found.sha256 for found in self._scans], self.split, self.errors])

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """As `Corpus`."""
        begin, end = self._range(part)
        for path, found in zip(self.paths, self._scans, strict=True):
            if begin < found.num_characters and end > 0:
                yield read_characters(path, max(begin, 0), end, self.errors)
            begin, end = begin - found.num_characters, end - found.num_characters

    def _range(self, part: str) -> tuple[int, int]:
        """Where a part begins and ends, in characters of all files together; bounds are rounded down."""
        index = self.parts.index(part)
        shares = [Fraction(str(share)) for share in self.split]  # 0.6 + 0.3 is 0.9, as it was written
        bounds = [int(self.num_characters * sum(shares[:i])) for i in range(len(shares))]
        return bounds[index], [*bounds, self.num_characters][index + 1]


class TinyStories(Corpus):
    """TinyStories (Eldan, Li 2023), GPT-4's part: a training and a validation file, stories between separators.

    The files' own split is kept; with three parts, every other validation story goes to `test`.
    """

    separated = True

    def __init__(
        self, paths: list[Path], split: tuple[float, ...], errors: str = "strict", name: str = "tinystories"
    ) -> None:
        self.name, self.paths, self.errors = name, paths, errors
        self.parts = PARTS[: len(split)]
        self._scans = [scan(path, errors) for path in paths]

    @property
    def fingerprint(self) -> str:
        """As `Corpus`."""
        return sha256_json(["tinystories", [found.sha256 for found in self._scans], self.parts, self.errors])

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """As `Corpus`."""
        train, validation = self.paths
        chunks = read_chunks(train if part == "train" else validation, self.errors)
        for number, text in enumerate(split_documents(chunks, SEPARATOR)):
            if part == "train" or len(self.parts) == 2 or number % 2 == (part == "test"):
                yield [text]


# --- reading files


@dataclass(frozen=True)
class Scan:
    """What one pass over a file found."""

    sha256: str
    num_characters: int


def scan(path: Path, errors: str) -> Scan:
    """Reads a file once, in bounded memory.

    Raises:
        DataError: at the first byte that is not UTF-8 (unless `errors` allows it), with its offset.
    """
    digest, characters = hashlib.sha256(), 0
    for text in read_chunks(path, errors, digest):
        characters += len(text)
    return Scan(digest.hexdigest(), characters)


def read_characters(path: Path, begin: int, end: int, errors: str) -> Iterator[str]:
    """Characters `begin` to `end` of a file, in chunks."""
    for text in read_chunks(path, errors):
        if piece := text[max(begin, 0) : max(end, 0)]:
            yield piece
        begin, end = begin - len(text), end - len(text)
        if end <= 0:
            return


def split_documents(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """The texts between separators, which may straddle chunks; empty ones are left out."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        yield from filter(None, whole)
    if rest:
        yield rest
