"""Token ids on disk as other programs write them: runs of integers in files, read in place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinylm.data.token_array import TokenArray
from tinylm.errors import DataError


@dataclass(frozen=True)
class Shard:
    """A run of token ids in a file.

    Attributes:
        path: the file
        dtype: integer type of an id, little-endian
        offset: bytes before the first id
        count: number of ids
    """

    path: Path
    dtype: np.dtype
    offset: int
    count: int

    def map(self) -> np.ndarray:
        """The ids, memory-mapped, (count,). (An empty range cannot be mapped.)"""
        if not self.count:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", offset=self.offset, shape=(self.count,))


@dataclass(frozen=True)
class Pretokenized:
    """The shards of a corpus.

    Attributes:
        name: the value of `data.corpus`
        kind: the format, for messages
        parts: part -> its shards, in order; `train` alone if no file is named as another part
        folder: where the tokenizer may lie
    """

    name: str
    kind: str
    parts: dict[str, list[Shard]]
    folder: Path

    @property
    def shards(self) -> list[Shard]:
        """The shards of all parts."""
        return [shard for shards in self.parts.values() for shard in shards]

    def tokens(self) -> dict[str, TokenArray]:
        """The ids of each part."""
        return {part: TokenArray([shard.map() for shard in shards]) for part, shards in self.parts.items()}


def whole_ids(path: Path, size: int, dtype: np.dtype) -> int:
    """The number of ids in `size` bytes of a file; DataError for a fraction of an id."""
    count, rest = divmod(size, dtype.itemsize)
    if rest:
        sizes = f"has {size:,} bytes of ids, which are {dtype.itemsize} bytes each"
        problem = f"{sizes}; it is truncated or does not hold token ids"
        raise DataError(f"data.corpus: {path}: {problem}")
    return count
