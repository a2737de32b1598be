"""Data sets of Hugging Face's `datasets`: folders that `save_to_disk` wrote, and names on the Hub."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.data.records.columns import library
from tinylm.data.records.reading import Reading, missing_field, text_of
from tinylm.data.sources import Source
from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError, did_you_mean
from tinylm.files import read_json, sha256_json

HUB = re.compile(r"hf:(?!//)(?P<name>[^:]+)(?::(?P<split>[^:]+))?")
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}

Parts = dict[str, list[Source]]  # part -> its files; one part, `all`, for data without a split of its own


def saved_dataset(folder: str, cache_dir: Path) -> Parts | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in order; None for any other folder.

    Raises:
        DataError: if files are missing or the folder is not understood.
    """
    if os.path.isfile(os.path.join(folder, "state.json")):  # noqa: PTH113, PTH118 (as in globs.py)
        return {"all": _shards(Path(folder), cache_dir)}
    if not os.path.isfile(os.path.join(folder, "dataset_dict.json")):  # noqa: PTH113, PTH118
        return None
    try:
        names = list(read_json(Path(folder) / "dataset_dict.json")["splits"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}/dataset_dict.json: has no splits; save the data set again") from error
    return _parts(
        folder, {name: _shards(Path(folder) / name, cache_dir) for name in names}, lambda name: f"{folder}/{name}"
    )


def _shards(folder: Path, cache_dir: Path) -> list[Source]:
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(f"{state}: no such file; save the data set again")
    content = read_json(state)
    try:
        names = [file["filename"] for file in content["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{state}: has no _data_files; save the data set again") from error
    if content.get("_indices_data_files"):
        raise DataError(f"{folder}: has an index over its rows; call flatten_indices() and save it again")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: lacks {name}, which state.json names; copy the whole folder")
    return [Source(str(folder / name), cache_dir=cache_dir) for name in names]


def _parts(name: str, splits: Parts, spelled: Callable[[str], str]) -> Parts:
    """The splits of a data set as parts; a single split, or a single training split, is the whole corpus."""
    unknown = [each for each in splits if each not in SPLITS]
    if len(splits) == 1:
        return {"all": next(iter(splits.values()))}
    parts = {} if unknown else {SPLITS[each]: files for each, files in splits.items()}
    if len(parts) < len(splits) or "train" not in parts or "val" not in parts:
        first = spelled("train" if "train" in splits else next(iter(splits)))
        raise ConfigError(
            f"data.corpus: {name}: has the splits {', '.join(splits)}, not train and validation; "
            f"name one of them, which data.split divides: {first}"
        )
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


# --- the Hub


@dataclass(frozen=True, kw_only=True)
class HubSplit(Source):
    """A split of a data set that the package `datasets` streams.

    Attributes:
        path: the name on the Hub, or the folder of a data set
        config: the name of a configuration, if there are several
        split: the name of the split
        version: SHA-256 of what determines the data
    """

    path: str
    config: str | None
    split: str
    version: str

    @property
    def suffix(self) -> str:
        """No suffix."""
        return ""

    @property
    def size(self) -> int | None:
        """Unknown."""
        return None

    def fingerprint(self, report: object = None) -> str:
        """SHA-256 of name, configuration, split and revision."""
        return self.version


def hub_dataset(source: str) -> Parts:
    """The splits of `hf:NAME`, `hf:NAME/CONFIG`, each with or without `:SPLIT`.

    Raises:
        MissingInputError: if `datasets` is not installed, or the data set cannot be reached.
    """
    found = HUB.fullmatch(source)
    if found is None:
        raise ConfigError(f"data.corpus: {source}: write hf:NAME, hf:OWNER/NAME/CONFIG, or hf:NAME:SPLIT")
    path, config = found["name"], None
    if not os.path.isdir(path) and path.count("/") == 2:  # noqa: PTH112
        path, _, config = path.rpartition("/")
    datasets = _datasets(source)
    with _reached(source):
        builder = datasets.load_dataset_builder(path, config)
        names = list(builder.info.splits or datasets.get_dataset_split_names(path, config))
    version = ["hub", path, config, builder.config_id, builder.hash]

    def split(name: str) -> HubSplit:
        url = f"hf:{found['name']}:{name}"
        return HubSplit(url=url, path=path, config=config, split=name, version=sha256_json([*version, name]))

    splits: Parts = {name: [split(name)] for name in names}
    if (wanted := found["split"]) is None:
        return _parts(source, splits, lambda name: f"{source}:{name}")
    if wanted not in splits:
        hint = did_you_mean(wanted, names)
        raise ConfigError(f"data.corpus: {source}: has no split {wanted}{hint}; it has {', '.join(names)}")
    return {"all": splits[wanted]}


def read_hub(source: Source, reading: Reading, errors: str) -> Iterator[list[str]]:
    """The texts of the records of a split, streamed."""
    assert isinstance(source, HubSplit)
    datasets = _datasets(source.url)
    with _reached(source.url):
        records = datasets.load_dataset(source.path, source.config, split=source.split, streaming=True)
        columns = records.column_names
        column = reading.field if reading.field in (columns or ()) else reading.field.partition(".")[0]
        if columns is not None:
            if column not in columns:
                missing_field(columns, reading.field, source.url, "")
            records = records.select_columns([column])
        for number, record in enumerate(records, start=1):
            yield [text_of(record, reading, source.url, f"record {number}", errors)]


def _datasets(url: str) -> Any:
    """The package `datasets`, without its progress bars and log lines."""
    datasets = library("datasets", Source(url))
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return datasets


@contextlib.contextmanager
def _reached(url: str) -> Iterator[None]:
    """Converts the errors of `datasets`, which are of many types, to a MissingInputError of one line."""
    try:
        yield
    except TinyLMError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingInputError(f"data.corpus: {url}: cannot be read ({reason})") from error
