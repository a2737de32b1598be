"""TinyStories (Eldan, Li 2023), GPT-4's part: the corpus, and samples that need not download all of it.

The data set is a training and a validation file of gigabytes, with stories between separators. A sample is a folder
with the beginning of each, byte for byte, up to the end of the last requested story; `data.corpus` takes the folder.
"""

import codecs
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from tinylm.data.download import Download, stream
from tinylm.data.records import END as SEPARATOR
from tinylm.data.records import split_documents
from tinylm.errors import DataError
from tinylm.files import atomic_write
from tinylm.progress import ProgressBar

_HUB = "https://huggingface.co/datasets/roneneldan/TinyStories"
NAMES = ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")
TINYSTORIES = tuple(Download(f"{_HUB}/resolve/main/{name}", pointer=f"{_HUB}/raw/main/{name}") for name in NAMES)
SAMPLE = ("train.txt", "val.txt")  # in the folder of a sample


# --- samples


def sources(url: str | None) -> tuple[Download, Download]:
    """The training and the validation file, from Hugging Face or a mirror's folder, or one .txt file for both."""
    if url is not None and url.endswith(".txt"):
        return Download(url), Download(url)
    train, val = TINYSTORIES if url is None else [Download(f"{url.rstrip('/')}/{name}") for name in NAMES]
    return train, val


def write_sample(
    folder: Path, counts: tuple[int, int], origins: tuple[Download, Download], cache_dir: Path
) -> list[Path]:
    """Writes `train.txt` and `val.txt` with `counts` stories from `origins`, and returns their paths.

    If the two origins are the same file, the validation stories follow the training stories.

    Raises:
        MissingInputError: if a file cannot be downloaded.
        DataError: if it has too few stories, or is not UTF-8.
    """
    paths = [folder / name for name in SAMPLE]
    with ExitStack() as stack:
        texts = {source: stack.enter_context(closing(_stories(source, cache_dir))) for source in origins}
        for path, count, source in zip(paths, counts, origins, strict=True):
            _write(path, islice(texts[source], count), count, source.url)
    return paths


def _stories(source: Download, cache_dir: Path) -> Generator[str, None, None]:
    """The stories of a file, which is read only as far as they are requested."""
    with closing(stream(source, cache_dir)) as blocks:
        try:
            for text in split_documents(codecs.iterdecode(blocks, "utf-8-sig"), SEPARATOR):
                if text.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise DataError(f"{source.url}: is not UTF-8 ({error.reason}); is it a text file?") from error


def _write(path: Path, texts: Iterable[str], count: int, url: str) -> None:
    with atomic_write(path) as file:
        with ProgressBar(f"writing {path.name}", count, "stories") as bar:
            for text in texts:
                file.write((text + SEPARATOR).encode())
                bar.update(1)
        if bar.done < count:
            raise DataError(f"{url}: has {bar.done:,} stories for {path.name}, not {count:,}; ask for fewer")
