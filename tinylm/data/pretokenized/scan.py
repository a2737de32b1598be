"""One pass over token ids: checksum, least and largest id, remembered for unchanged files."""

import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinylm.data.pretokenized.base import Shard
from tinylm.errors import CannotCreateError, DataError, StorageError
from tinylm.files import read_json, sha256_bytes, write_json

BLOCK = 1 << 20  # ids


@dataclass(frozen=True)
class Seen:
    """What was found in a file of ids.

    Attributes:
        size: bytes of the file
        mtime: time of its last change, in nanoseconds
        layout: type and offset of the ids, by which it was read
        sha256: of the ids
        least: the smallest id; 0 if there are none
        most: the largest id; -1 if there are none
    """

    size: int
    mtime: int
    layout: str
    sha256: str
    least: int
    most: int


def scan(shards: Iterable[Shard], cache_dir: Path) -> list[Seen]:
    """Reads the ids of all shards, but not those of files that are unchanged since they were last read.

    Args:
        shards: the shards
        cache_dir: what was found is kept in its `scans` folder, if that can be written
    """
    shards = list(shards)
    with tqdm(
        total=sum(shard.count * shard.dtype.itemsize for shard in shards), desc="checking ids", unit="B",
        unit_scale=True, delay=2, leave=False, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        return [_scan(shard, cache_dir, bar) for shard in shards]


def _scan(shard: Shard, cache_dir: Path, bar: tqdm) -> Seen:
    status, layout = shard.path.stat(), f"{shard.dtype.str} {shard.offset}"
    name = sha256_bytes(str(shard.path.absolute()).encode("utf-8", "surrogateescape"))[:16]
    record = cache_dir / "scans" / f"{name}.json"
    with suppress(OSError, DataError, TypeError):
        seen = Seen(**read_json(record))
        if (seen.size, seen.mtime, seen.layout) == (status.st_size, status.st_mtime_ns, layout):
            bar.update(shard.count * shard.dtype.itemsize)
            return seen
    digest, least, most, ids = hashlib.sha256(), 0, -1, shard.map()
    for first in range(0, shard.count, BLOCK):
        block = np.ascontiguousarray(ids[first : first + BLOCK])
        digest.update(block.data)
        least, most = min(least, int(block.min())), max(most, int(block.max()))
        bar.update(block.nbytes)
    seen = Seen(status.st_size, status.st_mtime_ns, layout, digest.hexdigest(), least, most)
    with suppress(CannotCreateError, StorageError):  # a read-only cache: the next run reads again
        write_json(record, asdict(seen))
    return seen
