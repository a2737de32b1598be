"""Folders of `tinylm prepare tokens`: index.json, the shards that it lists, and the tokenizer."""

from pathlib import Path

import numpy as np

from tinylm.data.pretokenized.base import Pretokenized, Shard
from tinylm.data.shard_folder import open_shards
from tinylm.data.shard_index import ShardIndex, index_files, read_folder
from tinylm.errors import DataError
from tinylm.files import sha256_json
from tinylm.locate import TOKENIZER as TOKENIZER_FILE

KIND = "token shards"


def read_own(source: str, folder: Path) -> Pretokenized | None:
    """The shards of a folder; None if it has neither shards nor an index of shards.

    Raises:
        DataError: if the folder is incomplete or damaged, as far as sizes and the index show.
    """
    shards = next(folder.glob("*-[0-9][0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9].bin"), None)
    if not index_files(folder) or (shards is None and not (folder / TOKENIZER_FILE).is_file()):
        return None  # any program may write an index.json
    index = read_folder(folder)
    if not index.complete:
        lacks = f"has {len(index.shards):,} shards and is not complete"
        raise DataError(
            f"data.corpus: {source}: {lacks}; wait for prepare tokens, or train meanwhile with data.streaming=true"
        )
    dtype = np.dtype(index.dtype)
    parts = {
        part: [Shard(folder / key.file, dtype, 0, shard.tokens) for key, shard in index.of_part(part)]
        for part in index.parts
    }
    return Pretokenized(source, KIND, parts, folder)


def check_own(folder: Path) -> str:
    """Verifies the shards as `open_shards` does, and returns the fingerprint of their text and tokenizer."""
    open_shards(folder)
    return own_fingerprint(read_folder(folder))


def own_fingerprint(index: ShardIndex) -> str:
    """The fingerprint of shards, complete or not: the text's fingerprint and the tokenizer's SHA-256."""
    return sha256_json(["token shards", index.fingerprint, index.tokenizer])
