"""The index of a folder of token shards: its files, their lengths and their checksums.

The folder holds the ids of each part in files of bounded size, `train-00000-00000.bin` (part, group of the corpus,
number in the group), and `index.json`. Which documents a shard holds depends on the corpus and the tokenizer alone, so
any process can build any shard. Several processes that build one folder each record theirs in an index of their own,
`index-00001-of-00004.json`; the folder is complete once these together have every shard of every group.

The index is verified by its own SHA-256, and every shard by its size, whenever a folder is opened. The SHA-256 of the
shards is verified if they have at most `VERIFIED` bytes together, else on request.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinylm.data.token_array import TokenArray, Tokens
from tinylm.errors import DataError
from tinylm.files import read_json, sha256_file, sha256_json, write_json

FORMAT = 3
INDEX = "index.json"
VERIFIED = 256 << 20  # bytes


class ShardKey(NamedTuple):
    """The place of a shard in its corpus. Keys sort in the order of the tokens of a part."""

    part: str
    group: int
    number: int

    @property
    def file(self) -> str:
        """The name of the file of ids."""
        return f"{self.part}-{self.group:05}-{self.number:05}.bin"

    @property
    def log_probs_file(self) -> str:
        """The name of the file of log probabilities, of a corpus that knows them."""
        return self.file.removesuffix(".bin") + ".log_probs"

    @classmethod
    def of(cls, file: str) -> "ShardKey":
        """The key of a file of ids."""
        found = re.fullmatch(r"(\w+)-(\d{5,})-(\d{5,})\.bin", file)
        if found is None:
            raise ValueError(f"{file} is not a shard")
        return cls(found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True)
class Shard:
    """The record of a shard.

    Attributes:
        tokens: number of ids
        sha256: of the file of ids
        documents: number of log probabilities
        log_probs: SHA-256 of their file; None if there is none
    """

    tokens: int
    sha256: str
    documents: int = 0
    log_probs: str | None = None


@dataclass
class ShardIndex:
    """The shards of a folder.

    Attributes:
        corpus: name of the corpus
        fingerprint: that of the corpus
        tokenizer: SHA-256 of the tokenizer
        dtype: type of the ids
        parts: names of the parts
        groups: number of shards of each part, for every group; None for a group that has not been read to its end
        shards: records of the shards that exist
    """

    corpus: str
    fingerprint: str
    tokenizer: str
    dtype: str
    parts: tuple[str, ...]
    groups: list[dict[str, int] | None]
    shards: dict[ShardKey, Shard] = field(default_factory=dict)

    @property
    def source(self) -> tuple:
        """Everything that determines the shards: indexes with equal sources describe parts of one folder."""
        return self.fingerprint, self.tokenizer, self.dtype, self.parts, len(self.groups)

    @property
    def complete(self) -> bool:
        """Whether every group has been read and all its shards exist."""
        return None not in self.groups and not self.missing()

    def missing(self) -> list[ShardKey]:
        """The shards that do not exist, of the groups that have been read."""
        return [key for group in range(len(self.groups)) for key in self.keys(group) if key not in self.shards]

    def keys(self, group: int) -> list[ShardKey]:
        """All shards of a group; an empty list if it has not been read."""
        counts = self.groups[group] or {}
        return [ShardKey(part, group, number) for part, count in counts.items() for number in range(count)]

    def of_part(self, part: str) -> list[tuple[ShardKey, Shard]]:
        """The shards of a part, in the order of its tokens."""
        return sorted((key, shard) for key, shard in self.shards.items() if key.part == part)

    def num_tokens(self, part: str) -> int:
        """Tokens in the shards of a part."""
        return sum(shard.tokens for _, shard in self.of_part(part))

    @property
    def num_bytes(self) -> int:
        """Size of all files of ids."""
        return np.dtype(self.dtype).itemsize * sum(shard.tokens for shard in self.shards.values())

    def add(self, other: "ShardIndex") -> None:
        """Adds the entries of another index of the same folder."""
        self.shards |= other.shards
        self.groups = [mine or theirs for mine, theirs in zip(self.groups, other.groups, strict=True)]

    def damaged(self, folder: Path, full: bool | None = None, keys: Iterable[ShardKey] | None = None) -> list[ShardKey]:
        """The shards whose files are missing or differ from their records.

        Args:
            folder: the folder
            full: whether to compare the SHA-256 too. Default: up to `VERIFIED` bytes in all
            keys: the shards to check. Default: all
        """
        full = self.num_bytes <= VERIFIED if full is None else full
        chosen = sorted(self.shards if keys is None else keys)
        return [key for key in chosen if not self._intact(folder, key, self.shards[key], full)]

    def _intact(self, folder: Path, key: ShardKey, shard: Shard, full: bool) -> bool:
        files = [(key.file, shard.tokens * np.dtype(self.dtype).itemsize, shard.sha256)]
        if shard.log_probs is not None:
            files.append((key.log_probs_file, shard.documents * 8, shard.log_probs))
        try:
            return all(
                (folder / name).stat().st_size == size and (not full or sha256_file(folder / name) == digest)
                for name, size, digest in files
            )
        except OSError:
            return False

    # --- files

    def to_dict(self) -> dict[str, Any]:
        """The index as plain values, with its own SHA-256."""
        values: dict[str, Any] = {
            "format": FORMAT, "corpus": self.corpus, "fingerprint": self.fingerprint, "tokenizer": self.tokenizer,
            "dtype": self.dtype, "complete": self.complete, "groups": self.groups,
            "parts": {part: [_record(*each) for each in self.of_part(part)] for part in self.parts},
        }  # fmt: skip
        return values | {"sha256": sha256_json(values)}

    def save(self, path: Path) -> None:
        """Writes the index, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "ShardIndex":
        """Reads an index.

        Raises:
            DataError: if it is missing, damaged or something else.
        """
        try:
            values = read_json(path)
            digest = values.pop("sha256")
            if values["format"] != FORMAT or sha256_json(values) != digest:
                raise DataError(f"{path}: is damaged, or of another version of tinylm; build the shards again")
            records = [each for part in values["parts"].values() for each in part]
            return cls(
                values["corpus"], values["fingerprint"], values["tokenizer"], values["dtype"], tuple(values["parts"]),
                values["groups"], dict(map(_parse, records)),
            )  # fmt: skip
        except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: is not an index of token shards ({error})") from error


def _record(key: ShardKey, shard: Shard) -> dict[str, Any]:
    found: dict[str, Any] = {"file": key.file, "tokens": shard.tokens, "sha256": shard.sha256}
    if shard.log_probs is not None:
        found |= {"documents": shard.documents, "log_probs": shard.log_probs}
    return found


def _parse(record: dict[str, Any]) -> tuple[ShardKey, Shard]:
    documents, log_probs = record.get("documents", 0), record.get("log_probs")
    return ShardKey.of(record["file"]), Shard(record["tokens"], record["sha256"], documents, log_probs)


def index_files(folder: Path) -> list[Path]:
    """`index.json`, if it exists, and the indexes of processes that build a part of the folder each."""
    return [*filter(Path.is_file, [folder / INDEX]), *sorted(folder.glob("index-*-of-*.json"))]


def joined(indexes: Iterable[ShardIndex]) -> ShardIndex | None:
    """The union of several indexes of a folder; None without any.

    Raises:
        DataError: if they are of different corpora or tokenizers.
    """
    whole: ShardIndex | None = None
    for index in indexes:
        if whole is None:
            whole = index
        elif index.source != whole.source:
            raise DataError(f"has shards of two corpora or tokenizers, {whole.corpus} and {index.corpus}")
        else:
            whole.add(index)
    return whole


def read_folder(folder: Path) -> ShardIndex:
    """The index of a folder, complete or not, joined from those of several processes if need be.

    Raises:
        DataError: if there is none, or the index is damaged.
    """
    with contextlib.suppress(DataError):
        index = ShardIndex.load(folder / INDEX)
        if index.complete:
            return index
    paths = index_files(folder)
    if not paths:
        raise DataError(f"{folder}: has no {INDEX}; it is not a folder of token shards")
    try:
        index = joined(map(ShardIndex.load, paths))
    except DataError as error:
        named = str(error).startswith(str(folder))
        raise error if named else DataError(f"{folder}: {error}; build each in a folder of its own") from error
    assert index is not None
    return index


def open_parts(folder: Path, index: ShardIndex) -> dict[str, Tokens]:
    """The ids of each part, memory-mapped; a part in a single shard is an ordinary array."""
    _allow_files(len(index.shards))
    found: dict[str, Tokens] = {}
    for part in index.parts:
        pieces = [_memmap(folder / key.file, np.dtype(index.dtype)) for key, _ in index.of_part(part)]
        found[part] = pieces[0] if len(pieces) == 1 else TokenArray(pieces) if pieces else np.empty(0, index.dtype)
    return found


def read_log_probs(folder: Path, index: ShardIndex) -> dict[str, np.ndarray]:
    """The log probabilities of the documents of each part whose shards have them, in nats, float64 (documents,)."""
    files: dict[str, list[np.ndarray]] = {}
    for key, shard in sorted(index.shards.items()):
        if shard.log_probs is not None:
            files.setdefault(key.part, []).append(np.fromfile(folder / key.log_probs_file))
    return {part: np.concatenate(found) for part, found in files.items()}


def _memmap(path: Path, dtype: np.dtype) -> np.ndarray:
    """Memory-maps a file. (An empty file cannot be mapped.)"""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _allow_files(count: int) -> None:
    """Raises the limit of open files, as far as allowed: Python keeps one open for every memory map."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows, where the limit is high

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard if hard != resource.RLIM_INFINITY else 1 << 20
        if soft != resource.RLIM_INFINITY and soft < 2 * count + 256 and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * count + 256, most), hard))
