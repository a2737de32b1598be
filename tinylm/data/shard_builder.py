"""Builds token shards: reads the groups of a corpus, encodes their blocks on all cores, and records each shard.

A shard is a fixed number of consecutive blocks of one part of a group, about `BLOCKS` MB of text. It is written to a
temporary file, renamed when complete and then recorded, so a kill costs one shard of each part. Groups whose shards are
all recorded are not read again; in others, what precedes a missing shard is read but not encoded.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tinylm.data.corpora import Corpus
from tinylm.data.shard_index import INDEX, Shard, ShardIndex, ShardKey
from tinylm.errors import DataError
from tinylm.files import atomic_write, sha256_bytes
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.fast.blocks import Block, Packer
from tinylm.workers import map_in_order

BLOCKS = 128  # of a shard: 128 MB of text, about 32 million tokens of GPT-2's


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
        """Whether a shard is this process's."""
        number = key.group if num_groups >= self.count else key.group + key.number
        return number % self.count == self.number

    def reads(self, group: int, num_groups: int) -> bool:
        """Whether some shards of a group may be this process's."""
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
        index: what is there; it is updated
        share: the shards to build
        processes: processes that encode; None for one per core

    Raises:
        DataError: if the tokenizer cannot encode the text, or the corpus has fewer shards than the index says.
        StorageError: if the disk is full or fails.
    """
    waiting: deque[tuple[ShardKey, list[float]] | Callable[[], None]] = deque()
    with ExitStack() as files, corpus.reading("encoding"):
        writing: dict[ShardKey, _ShardWriter] = {}

        def finish(keys: Iterable[ShardKey]) -> None:
            for key in list(keys):
                index.shards[key] = writing.pop(key).close()
            index.save(folder / share.index)

        def end_group(group: int, counts: dict[str, int]) -> None:
            index.groups[group] = counts
            finish(key for key in writing if key.group == group)

        def run_ends() -> None:
            while waiting and callable(waiting[0]):
                waiting.popleft()()  # pyright: ignore[reportCallIssue]

        blocks = _missing_blocks(corpus, tokenizer, index, share, waiting, end_group)
        for ids in map_in_order(tokenizer.encode_packed, blocks, processes, alone=8):
            run_ends()
            key, log_probs = waiting.popleft()  # pyright: ignore[reportGeneralTypeIssues]
            if key not in writing:
                writing[key] = _ShardWriter(folder, key, files)
            if writing[key].add(ids, log_probs) == BLOCKS:
                finish([key])
        run_ends()


def _missing_blocks(
    corpus: Corpus, tokenizer: Tokenizer, index: ShardIndex, share: Share, waiting: deque, end_group: Callable
) -> Iterator[Block]:
    """Yields the blocks to encode, and queues what they belong to, and what follows at the end of each group."""
    for group in range(corpus.num_groups):
        counts = index.groups[group]
        takes = _Wanted(index, share)
        if counts is None:
            if not share.reads(group, corpus.num_groups):
                continue
            limit = None
        else:
            missing = [key for key in index.keys(group) if takes(key)]
            if not missing:
                continue
            ends = any(key.number == counts[key.part] - 1 for key in missing)
            limit = None if ends else BLOCKS * len(missing)  # then the group need not be read to its end
        numbers = dict.fromkeys(corpus.parts, 0)
        with closing(_blocks(corpus, tokenizer, group, takes, numbers)) as found:
            for key, block, log_probs in islice(found, limit):
                waiting.append((key, log_probs))
                yield block
        if limit is None:
            read = {part: -(-number // BLOCKS) for part, number in numbers.items()}
            if counts not in (None, read):
                raise DataError(f"{corpus.name}: has changed since its shards were built; build them in a new folder")
            counts = read
        waiting.append(lambda group=group, counts=counts: end_group(group, counts))


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
        tokenizer: says where a text may be cut
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
