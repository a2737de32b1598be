"""Folders of token shards with shards of a few tokens, and what they look like while they are built."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from tinylm.data.shard_index import Shard, ShardIndex, ShardKey
from tinylm.tokenizer import ByteTokenizer

LENGTHS = [100, 40, 130, 5, 77]  # tokens of the shards of train
VAL = np.arange(50, dtype=np.uint16)


def write_folder(folder: Path, lengths=LENGTHS) -> ShardIndex:
    """A folder of `prepare tokens`: every group of the corpus has one shard of train, the first one also one of val."""
    folder.mkdir()
    tokenizer, random = ByteTokenizer(), np.random.default_rng(0)
    tokenizer.save(folder / "tokenizer.tinylm.json")
    index = ShardIndex("text", "fingerprint", tokenizer.sha256, "uint16", ("train", "val"), [])
    pieces = {ShardKey("train", g, 0): random.integers(0, 256, n, np.uint16) for g, n in enumerate(lengths)}
    for key, ids in (pieces | {ShardKey("val", 0, 0): VAL}).items():
        ids.tofile(folder / key.file)
        index.shards[key] = Shard(len(ids), hashlib.sha256(ids.tobytes()).hexdigest())
    index.groups = [{"train": 1, "val": int(g == 0)} for g in range(len(lengths))]
    index.save(folder / "index.json")
    return index


def publish(whole: ShardIndex, source: Path, target: Path, groups: int) -> None:
    """The first groups of a folder in another one, as if it had been built so far."""
    target.mkdir(exist_ok=True)
    shutil.copy(source / "tokenizer.tinylm.json", target)
    found = {key: shard for key, shard in whole.shards.items() if key.group < groups}
    for key in found:
        if not (target / key.file).exists():
            shutil.copy(source / key.file, target)
    known = [counts if g < groups else None for g, counts in enumerate(whole.groups)]
    ShardIndex("text", "fingerprint", whole.tokenizer, "uint16", whole.parts, known, found).save(target / "index.json")
