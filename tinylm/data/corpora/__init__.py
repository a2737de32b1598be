"""Text sources by name: the built-in stories, other grammars, files, globs and URLs."""

import glob
import os
import re
from pathlib import Path

from tinylm.data.corpora.base import PARTS, Corpus, check_split
from tinylm.data.corpora.generated import GrammarCorpus
from tinylm.data.corpora.lines import FIRST_NAMES, LineCorpus
from tinylm.data.corpora.text import TINYSHAKESPEARE, TextCorpus
from tinylm.data.corpora.tinystories import SAMPLE, TINYSTORIES, TinyStoriesCorpus
from tinylm.data.download import Download, download
from tinylm.data.grammar.parse import load_grammar
from tinylm.data.grammar.stories import COUNT, story_grammar
from tinylm.errors import MissingInputError, did_you_mean

__all__ = ["NAMES", "PARTS", "Corpus", "check_split", "open_corpus"]

NAMES = ("stories", "names", "tinyshakespeare", "tinystories")


def open_corpus(
    source: str, *, split: tuple[float, ...], cache_dir: Path, seed: int = 0, errors: str = "strict"
) -> Corpus:
    """Opens a corpus by name, path, glob or URL.

    Args:
        source: `stories`, `names`, `tinyshakespeare`, `tinystories`, a text file, a glob of text files, a URL, or a
            grammar (`*.grammar.yaml`). `stories:20000` and `my.grammar.yaml:20000` set the number of texts to generate;
            `lines:my.txt` makes every line a document. A folder with `train.txt` and `val.txt` is a sample of
            TinyStories
        split: fractions of two or three parts
        cache_dir: the cache of downloads
        seed: seed of generated texts
        errors: treatment of bytes that are not UTF-8: `strict`, `replace`, or `surrogateescape` to keep them

    Raises:
        MissingInputError: if there is no such file, or a download fails.
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
        return TextCorpus(source, [download(TINYSHAKESPEARE, cache_dir)], split, errors)
    if source == "tinystories":
        return TinyStoriesCorpus(source, [download(file, cache_dir) for file in TINYSTORIES], split, errors)
    if "://" in source:
        return TextCorpus(source, [download(Download(source), cache_dir)], split, errors)
    if all(os.path.isfile(os.path.join(source, name)) for name in SAMPLE):  # noqa: PTH113, PTH118
        return TinyStoriesCorpus(source, [Path(source) / name for name in SAMPLE], split, errors)
    if source.startswith("lines:"):
        return LineCorpus(source, _find_files(source.removeprefix("lines:")), split, errors)
    return TextCorpus(source, _find_files(source), split, errors)


def _find_files(source: str) -> list[Path]:
    """The files of a path or glob, sorted by name; raises MissingInputError if there are none."""
    found = [source] if os.path.isfile(source) else sorted(glob.glob(source, recursive=True))  # noqa: PTH113
    paths = [Path(path) for path in found if os.path.isfile(path)]  # noqa: PTH113 (Path raises for an overlong name)
    if not paths:
        hint = did_you_mean(source, NAMES) or f"; give a text file, a glob, a URL, or one of {', '.join(NAMES)}"
        raise MissingInputError(f"data.corpus: {source}: no such corpus or file{hint}")
    return paths
