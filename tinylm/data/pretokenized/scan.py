"""One pass over token ids: checksum, least and largest id, remembered for unchanged files."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tinylm.data.pretokenized.base import Shard
from tinylm.data.sources import remembered

BLOCK = 1 << 20  # ids


class Seen(NamedTuple):
    """Checksum and range of the ids of a shard.

    Attributes:
        sha256: of the ids as they are stored
        least: the smallest id, 0 if there are none
        most: the largest id, -1 if there are none
    """

    sha256: str
    least: int
    most: int


def scan(shards: Sequence[Shard], cache_dir: Path) -> list[Seen]:
    """Reads the ids of all shards, but not those of files that are unchanged since they were last read.

    Args:
        shards: the shards
        cache_dir: the cache folder, which remembers what was found
    """
    with tqdm(
        total=sum(shard.count * shard.dtype.itemsize for shard in shards), desc="checking ids", unit="B",
        unit_scale=True, delay=2, leave=False, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        found = []
        for shard in shards:
            kind, done = f"token ids {shard.dtype.str} {shard.offset}", bar.n
            found.append(Seen(*remembered(shard.path, kind, lambda shard=shard: _read(shard, bar), cache_dir)))
            bar.update(done + shard.count * shard.dtype.itemsize - bar.n)
        return found


def _read(shard: Shard, bar: tqdm) -> Seen:
    digest, least, most, ids = hashlib.sha256(), 0, -1, shard.map()
    for first in range(0, shard.count, BLOCK):
        block = np.ascontiguousarray(ids[first : first + BLOCK])
        digest.update(block.data)
        least, most = min(least, int(block.min())), max(most, int(block.max()))
        bar.update(block.nbytes)
    return Seen(digest.hexdigest(), least, most)
