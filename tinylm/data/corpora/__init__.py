"""Text sources by name: the built-in stories, other grammars, files, globs and URLs."""

import os
import re
from dataclasses import fields
from pathlib import Path

from tinylm.data.corpora.base import PARTS, REPAIR, Corpus, Reading, check_split
from tinylm.data.corpora.files import find_files
from tinylm.data.corpora.generated import GrammarCorpus
from tinylm.data.corpora.lines import FIRST_NAMES, LineCorpus
from tinylm.data.corpora.text import TINYSHAKESPEARE, TextCorpus
from tinylm.data.corpora.tinystories import SAMPLE, TEST, TINYSTORIES, TinyStoriesCorpus
from tinylm.data.download import Download, download
from tinylm.data.grammar.parse import load_grammar
from tinylm.data.grammar.stories import COUNT, story_grammar
from tinylm.errors import ConfigError, MissingInputError, did_you_mean, notice

__all__ = ["DEFAULT", "NAMES", "PARTS", "REPAIR", "Corpus", "Reading", "check_split", "open_corpus"]

DEFAULT = Reading()
NAMES = ("stories", "names", "tinyshakespeare", "tinystories")


def open_corpus(
    source: str,
    *,
    split: tuple[float, ...],
    cache_dir: Path,
    seed: int = 0,
    errors: str = "strict",
    reading: Reading = DEFAULT,
) -> Corpus:
    """Opens a corpus by name, path, glob or URL.

    Args:
        source: `stories`, `names`, `tinyshakespeare`, `tinystories`, a text file, a glob of text files, a URL, or a
            grammar (`*.grammar.yaml`). `stories:20000` and `my.grammar.yaml:20000` set the number of texts to generate;
            `lines:my.txt` makes every line a document. A folder with `train.txt`, `val.txt` and perhaps `test.txt` has
            its own parts, with documents divided as in TinyStories
        split: fractions of two or three parts
        cache_dir: the cache of downloads
        seed: seed of generated texts
        errors: treatment of bytes that are not UTF-8: `strict`, `replace`, or `surrogateescape` to keep them
        reading: options of reading documents out of files

    Raises:
        ConfigError: for an option of `reading` that does nothing with this source.
        MissingInputError: if there is no such file, or a download fails.
        DataError: if the text is empty or not UTF-8.
    """
    _refuse(reading, source)
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
    parts = [Path(source).expanduser() / name for name in (*SAMPLE, TEST)]
    given = [path for path in parts if os.path.isfile(path)]  # noqa: PTH113 (Path raises for an overlong name)
    if given[:2] == parts[:2]:
        return TinyStoriesCorpus(source, given, split, errors)
    if source.startswith("lines:"):
        return LineCorpus(source, _find_files(source.removeprefix("lines:")), split, errors)
    return TextCorpus(source, _find_files(source), split, errors)


def _refuse(reading: Reading, source: str) -> None:
    """Raises ConfigError for an option that the source does not use."""
    for field in fields(reading):
        if getattr(reading, field.name) != field.default:
            raise ConfigError(f"data.{field.name}: does not work with {source}; leave it out")


def _find_files(source: str) -> list[Path]:
    """The files of a path or glob; raises MissingInputError if there are none."""
    paths = find_files(source)
    if len(paths) > 1:
        notice(f"{source}: {len(paths):,} files")
    if not paths:
        hint = did_you_mean(source, NAMES) or f"; give a text file, a glob, a URL, or one of {', '.join(NAMES)}"
        raise MissingInputError(f"data.corpus: {source}: no such corpus or file{hint}")
    return paths
