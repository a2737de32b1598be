"""A sample of TinyStories (Eldan, Li 2023): the first stories of files of gigabytes, which are read no further.

The files are GPT-4's part of the data set, one to train and one to validate on. What is written is the beginning of
each, byte for byte, up to the end of the last story that was asked for; `data.corpus` takes the folder.
"""

import codecs
import sys
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from tinylm.data.corpus import SAMPLE, SEPARATOR, TINYSTORIES, split_documents
from tinylm.data.download import Download, stream
from tinylm.errors import DataError
from tinylm.files import atomic_write

NAMES = tuple(source.url.rsplit("/", 1)[-1] for source in TINYSTORIES)  # of the two files on Hugging Face


def sources(url: str | None) -> tuple[Download, Download]:
    """Where the stories to train on are, and those to validate on.

    Args:
        url: of a mirror's folder, which has the two files; or of one text file (.txt), which then gives both. Empty:
            Hugging Face
    """
    if url is not None and url.endswith(".txt"):
        return Download(url), Download(url)
    train, val = TINYSTORIES if url is None else [Download(f"{url.rstrip('/')}/{name}") for name in NAMES]
    return train, val


def write_sample(
    folder: Path, counts: tuple[int, int], origins: tuple[Download, Download], cache_dir: Path
) -> list[Path]:
    """Writes `train.txt` and `val.txt`, and gives their paths.

    Args:
        folder: where to
        counts: stories to train and to validate on
        origins: where they come from; of one and the same file, those to validate on follow those to train on
        cache_dir: a file that was put there by hand is not fetched

    Raises:
        MissingInputError: if a file cannot be fetched.
        DataError: if it has too few stories, or is not UTF-8.
    """
    paths = [folder / name for name in SAMPLE]
    with ExitStack() as stack:
        texts = {source: stack.enter_context(closing(stories(source, cache_dir))) for source in origins}
        for path, count, source in zip(paths, counts, origins, strict=True):
            _write(path, islice(texts[source], count), count, source.url)
    return paths


def stories(source: Download, cache_dir: Path) -> Generator[str, None, None]:
    """The stories of a file, each as it stands between two separators; the file is read as far as they are asked for.

    Raises:
        DataError: at bytes that are not UTF-8.
    """
    with closing(stream(source, cache_dir)) as blocks:
        try:
            for text in split_documents(codecs.iterdecode(blocks, "utf-8"), SEPARATOR):
                if text.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise DataError(f"{source.url}: is not UTF-8 ({error.reason}); is it a text file?") from error


def _write(path: Path, texts: Iterable[str], count: int, url: str) -> None:
    found = 0
    with atomic_write(path) as file:
        bar = tqdm(texts, total=count, unit=" stories", leave=False, disable=not sys.stderr.isatty())
        for text in bar:
            file.write((text + SEPARATOR).encode())
            found += 1
        if found < count:
            raise DataError(f"{url}: has {found:,} stories for {path.name}, not {count:,}; ask for fewer")
