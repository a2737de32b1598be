"""Megatron's indexed data sets: the ids in NAME.bin; their type and the lengths of the sequences in NAME.idx.

NAME.idx has a magic number of 9 bytes, the version (uint64), a code for the type (uint8), the numbers n of sequences
and d of document bounds (uint64), n lengths (int32), n offsets in bytes (int64) and d bounds (int64): document i is
sequences bounds[i] to bounds[i + 1]. The documents follow each other, as in training by Megatron.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinylm.data.pretokenized.base import Shard, whole_ids
from tinylm.errors import DataError, MissingInputError
from tinylm.files import open_input

KIND = "Megatron"
MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
BLOCK = 1 << 20  # sequences


def read_shard(index: Path) -> Shard | None:
    """The ids that an .idx file describes; None if it is not Megatron's.

    Raises:
        MissingInputError: if there is no .bin file beside it.
        DataError: if the two files do not match.
    """
    with open_input(index) as file:
        head = file.read(HEADER.size)
    if not head.startswith(MAGIC):
        return None
    if len(head) < HEADER.size:
        raise DataError(f"data.corpus: {index}: is truncated within its header; copy it again")
    _, version, code, sequences, bounds = HEADER.unpack(head)
    if version != 1 or code not in TYPES:
        raise DataError(f"data.corpus: {index}: has version {version} and type {code}; tinylm reads version 1 of ids")
    data, dtype = index.with_suffix(".bin"), np.dtype(TYPES[code])
    if not data.is_file():
        raise MissingInputError(f"data.corpus: {data}: no such file; Megatron's ids lie beside {index.name}")
    size = HEADER.size + 12 * sequences + 8 * bounds
    if index.stat().st_size != size:
        modes = "it is of a multimodal data set" if index.stat().st_size == size + sequences else "copy it again"
        raise DataError(f"data.corpus: {index}: has {index.stat().st_size:,} bytes, its header says {size:,}; {modes}")
    count = whole_ids(data, data.stat().st_size, dtype)
    listed = _check_lengths(index, sequences, dtype)
    if listed != count:
        raise DataError(f"data.corpus: {data}: has {count:,} ids, {index.name} lists {listed:,}; copy both again")
    return Shard(data, dtype, 0, count)


def _check_lengths(index: Path, sequences: int, dtype: np.dtype) -> int:
    """The number of ids in all sequences; DataError unless each begins where the last one ends."""
    if not sequences:
        return 0
    lengths = np.memmap(index, "<i4", "r", offset=HEADER.size, shape=(sequences,))
    offsets = np.memmap(index, "<i8", "r", offset=HEADER.size + 4 * sequences, shape=(sequences,))
    count = 0
    for first in range(0, sequences, BLOCK):
        block = lengths[first : first + BLOCK].astype(np.int64)
        ends = count + np.cumsum(block)
        if block.min() < 0 or ((ends - block) * dtype.itemsize != offsets[first : first + BLOCK]).any():
            raise DataError(f"data.corpus: {index}: its sequences do not follow each other in the .bin file")
        count = int(ends[-1])
    return count


def id_type(vocab_size: int) -> np.dtype:
    """The type that Megatron chooses for a vocabulary."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


def index_blocks(lengths: np.ndarray, dtype: np.dtype) -> Iterator[bytes]:
    """The .idx file of documents of one sequence each, which have `lengths` ids, int64 (documents,)."""
    code = next(code for code, name in TYPES.items() if np.dtype(name) == dtype)
    yield HEADER.pack(MAGIC, 1, code, len(lengths), len(lengths) + 1)
    yield lengths.astype("<i4").tobytes()
    yield ((np.cumsum(lengths) - lengths) * dtype.itemsize).astype("<i8").tobytes()
    yield np.arange(len(lengths) + 1, dtype="<i8").tobytes()
