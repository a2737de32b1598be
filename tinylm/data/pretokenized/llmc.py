"""Shards of llm.c and modded-nanogpt: a header of 256 int32 (magic number, version, number of ids), then the ids."""

from pathlib import Path

import numpy as np

from tinylm.data.pretokenized.base import Shard
from tinylm.errors import DataError
from tinylm.files import open_input

KIND, LLAMA = "llm.c", "llm.c for Llama 3"
HEADER = 256  # int32
VERSIONS = {20240520: (1, np.dtype("<u2"), KIND), 20240801: (7, np.dtype("<u4"), LLAMA)}  # by magic number
EVALUATION = 20240522
MOST = (1 << 31) - 1  # most ids in a shard: their number is an int32


def read_shard(path: Path) -> tuple[Shard, str] | None:
    """The ids of a shard and the name of its format; None for any other file.

    Raises:
        DataError: if the header is of another version, or its number of ids differs from the ids that follow.
    """
    with open_input(path) as file:
        header = np.frombuffer(file.read(12), "<i4")
    magic = int(header[0]) if len(header) else 0
    if magic == EVALUATION:
        raise DataError(f"data.corpus: {path}: holds multiple-choice questions of llm.c, not a text to train on")
    if magic not in VERSIONS:
        return None
    version, dtype, kind = VERSIONS[magic]
    size, offset = path.stat().st_size, HEADER * 4
    if size < offset:
        raise DataError(f"data.corpus: {path}: is truncated within its header; copy or download it again")
    if header[1] != version:
        raise DataError(f"data.corpus: {path}: has version {header[1]} of {kind}'s format, tinylm reads {version}")
    count = int(header[2])
    if size != offset + count * dtype.itemsize:
        found = f"its header says {count:,} ids, but {(size - offset) / dtype.itemsize:,.10g} follow"
        raise DataError(f"data.corpus: {path}: {found}; copy or download it again")
    return Shard(path, dtype, offset, count), kind


def header_bytes(count: int, vocab_size: int) -> tuple[bytes, np.dtype]:
    """The header of a shard, and the type of its ids: uint16, or uint32 for a larger vocabulary."""
    magic = next(magic for magic, (_, dtype, _) in VERSIONS.items() if vocab_size <= 256**dtype.itemsize)
    version, dtype, _ = VERSIONS[magic]
    header = np.zeros(HEADER, "<i4")
    header[:3] = magic, version, count
    return header.tobytes(), dtype
