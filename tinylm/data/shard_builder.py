"""Builds token shards: reads the groups of a corpus, encodes their blocks on all cores, and records each shard.

A shard is a fixed number of consecutive blocks of one part of a group, about `BLOCKS` MB of text. It is written to a
temporary file, renamed when complete and then recorded, so a kill costs at most one shard of each part. Groups whose
shards are all recorded are not read again; in other groups, the text before a missing shard is read but not encoded.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinylm.data.corpora import Corpus
from tinylm.data.shard_index import INDEX, Shard, ShardIndex, ShardKey
from tinylm.errors import DataError
from tinylm.files import atomic_write, sha256_bytes
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.fast.blocks import Block, Packer
from tinylm.workers import map_in_order

BLOCKS = 128  # in a shard: 128 MB of text, about 32 million tokens of GPT-2's tokenizer


@dataclass(frozen=True)
class Share:
    """The shards that one of several processes builds: whole groups if there are enough of them.

    Args:
        number: of the process, from 0
        count: number of processes
    """

    number: int = 0
    count: int = 1

    def takes(self, key: ShardKey, num_groups: int) -> bool:
        """Whether this process builds a shard."""
        number = key.group if num_groups >= self.count else key.group + key.number
        return number % self.count == self.number

    def reads(self, group: int, num_groups: int) -> bool:
        """Whether this process may build shards of a group."""
        return num_groups < self.count or group % self.count == self.number

    @property
    def index(self) -> str:
        """The name of the index of this process."""
        return INDEX if self.count == 1 else f"index-{self.number:05}-of-{self.count:05}.json"


WHOLE = Share()


def parts_with_log_probs(corpus: Corpus) -> tuple[str, ...]:
    """The parts whose documents' log probabilities are stored: those for evaluation, if the corpus knows them."""
    return corpus.parts[1:] if corpus.has_floor else ()


def new_index(corpus: Corpus, tokenizer: Tokenizer) -> ShardIndex:
    """The index of a folder without shards."""
    groups: list[dict[str, int] | None] = [None] * corpus.num_groups
    described = (corpus.name, corpus.fingerprint, tokenizer.sha256, tokenizer.dtype.name)
    return ShardIndex(*described, corpus.parts, groups)


def build_shards(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    index: ShardIndex,
    share: Share = WHOLE,
    processes: int | None = None,
) -> None:
    """Builds the shards that the index lacks, and saves the index after each.

    Args:
        folder: where shards and index are written
        corpus: the text
        tokenizer: encodes it
        index: the existing shards; it is updated
        share: the shards to build
        processes: processes that encode; None for one per core

    Raises:
        DataError: if the tokenizer cannot encode the text, or the corpus has fewer shards than the index says.
        StorageError: if the disk is full or fails.
    """
    with ExitStack() as files, corpus.reading("encoding"):
        recorder = _Recorder(folder, index, share, files)
        blocks = _missing_blocks(corpus, tokenizer, index, share, recorder.coming)
        for ids in map_in_order(tokenizer.encode_packed, blocks, processes, alone=8):
            recorder.add(ids)
        recorder.end_groups()


class _OfBlock(NamedTuple):
    """The shard of a block that is being encoded, and the log probabilities of its documents."""

    key: ShardKey
    log_probs: list[float]


class _EndOfGroup(NamedTuple):
    """All blocks of a group precede; `counts` are its shards of each part."""

    group: int
    counts: dict[str, int]


class _Recorder:
    """Writes encoded blocks to their shards, and records each shard that is complete.

    Attributes:
        coming: the shards that the next blocks belong to, in order
    """

    def __init__(self, folder: Path, index: ShardIndex, share: Share, files: ExitStack) -> None:
        self._folder, self._index, self._path, self._files = folder, index, folder / share.index, files
        self._writing: dict[ShardKey, _ShardWriter] = {}
        self.coming: deque[_OfBlock | _EndOfGroup] = deque()

    def add(self, ids: np.ndarray) -> None:
        """Appends the ids of the next block to its shard."""
        self.end_groups()
        block = self.coming.popleft()
        assert isinstance(block, _OfBlock)
        if block.key not in self._writing:
            self._writing[block.key] = _ShardWriter(self._folder, block.key, self._files)
        if self._writing[block.key].add(ids, block.log_probs) == BLOCKS:
            self._complete([block.key])

    def end_groups(self) -> None:
        """Completes the last shards of groups that end before the next block."""
        while self.coming and isinstance(end := self.coming[0], _EndOfGroup):
            self.coming.popleft()
            self._index.groups[end.group] = end.counts
            self._complete([key for key in self._writing if key.group == end.group])

    def _complete(self, keys: list[ShardKey]) -> None:
        for key in keys:
            self._index.shards[key] = self._writing.pop(key).close()
        self._index.save(self._path)


def _missing_blocks(
    corpus: Corpus, tokenizer: Tokenizer, index: ShardIndex, share: Share, coming: deque[_OfBlock | _EndOfGroup]
) -> Iterator[Block]:
    """Yields the blocks to encode, and appends their shards to `coming`."""
    for group in range(corpus.num_groups):
        counts, takes, limit = index.groups[group], _Wanted(index, share), None
        if counts is None and not share.reads(group, corpus.num_groups):
            continue
        if counts is not None:
            missing = [key for key in index.keys(group) if takes(key)]
            if not missing:
                continue
            if all(key.number < counts[key.part] - 1 for key in missing):
                limit = BLOCKS * len(missing)  # the group need not be read to its end
        numbers = dict.fromkeys(corpus.parts, 0)
        with closing(_blocks(corpus, tokenizer, group, takes, numbers)) as found:
            for key, block, log_probs in islice(found, limit):
                coming.append(_OfBlock(key, log_probs))
                yield block
        if counts is None or limit is None:
            read = {part: -(-number // BLOCKS) for part, number in numbers.items()}
            if counts not in (None, read):
                raise DataError(f"{corpus.name}: has changed since its shards were built; build them in a new folder")
            counts = read
        coming.append(_EndOfGroup(group, counts))


class _Wanted:
    """Whether a shard is to be built now."""

    def __init__(self, index: ShardIndex, share: Share) -> None:
        self._there, self._share, self._num_groups = frozenset(index.shards), share, len(index.groups)

    def __call__(self, key: ShardKey) -> bool:
        return key not in self._there and self._share.takes(key, self._num_groups)


def _blocks(
    corpus: Corpus, tokenizer: Tokenizer, group: int, takes: Callable[[ShardKey], bool], numbers: dict[str, int]
) -> Generator[tuple[ShardKey, Block, list[float]]]:
    """Yields (shard, block, log probabilities of the documents added since that part's last block) of a group.

    Args:
        corpus: the text
        tokenizer: determines where a text may be cut
        group: the group to read; its order is always the same
        takes: the shards whose blocks are yielded
        numbers: number of blocks of each part so far, updated
    """
    packers = {part: Packer(tokenizer.safe_cut) for part in corpus.parts}
    log_probs: dict[str, list[float]] = {part: [] for part in corpus.parts}

    def key_of(part: str) -> ShardKey:
        return ShardKey(part, group, numbers[part] // BLOCKS)

    def packed(part: str, blocks: Iterable[Block]) -> Iterator[tuple[ShardKey, Block, list[float]]]:
        for block in blocks:
            key = key_of(part)
            numbers[part] += 1
            if takes(key):
                yield key, block, log_probs[part]
            log_probs[part] = []

    known = parts_with_log_probs(corpus)
    for part, document in corpus.items(group):
        if part in known:
            document = ["".join(document)]
            if takes(key_of(part)):
                log_probs[part].append(corpus.log_prob(document[0]))
        yield from packed(part, packers[part].add(document))
    for part in corpus.parts:
        yield from packed(part, packers[part].rest(end=corpus.separated))


class _ShardWriter:
    """Writes one shard, which exists once it is closed.

    Args:
        folder: the folder of the shard
        key: the shard
        files: deletes the temporary file if an error ends the build
    """

    def __init__(self, folder: Path, key: ShardKey, files: ExitStack) -> None:
        self._folder, self._key = folder, key
        self._file_open = files.enter_context(ExitStack())
        self._file = self._file_open.enter_context(atomic_write(folder / key.file))
        self._digest, self._tokens, self._blocks = hashlib.sha256(), 0, 0
        self._log_probs: list[float] = []

    def add(self, ids: np.ndarray, log_probs: list[float]) -> int:
        """Appends the ids of a block, and returns the number of blocks."""
        data = np.ascontiguousarray(ids).data
        self._file.write(data)
        self._digest.update(data)
        self._log_probs += log_probs
        self._tokens, self._blocks = self._tokens + len(ids), self._blocks + 1
        return self._blocks

    def close(self) -> Shard:
        """Completes the files and returns their record."""
        self._file_open.close()
        shard = Shard(self._tokens, self._digest.hexdigest())
        if not self._log_probs:
            return shard
        data = np.array(self._log_probs).tobytes()
        with atomic_write(self._folder / self._key.log_probs_file) as file:
            file.write(data)
        return Shard(shard.tokens, shard.sha256, len(self._log_probs), sha256_bytes(data))
