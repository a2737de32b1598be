"""ShardStream: the token shards of a folder in order, as they appear while `tinylm prepare tokens` builds it."""

import contextlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinylm.data.shard_cache import ShardCache
from tinylm.data.shard_index import INDEX, Shard, ShardIndex, ShardKey, index_files, read_folder
from tinylm.data.sources import Source
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import TEMPORARY, parse_json
from tinylm.locate import TOKENIZER, command
from tinylm.tokenizer import Tokenizer, load_tokenizer

MAPPED = 4  # shards kept open
TRIES = 3  # attempts to read an index that is being replaced
BEING_WRITTEN = re.compile(  # names in a folder that may still get an index
    rf"{re.escape(TOKENIZER)}|{re.escape(TEMPORARY)}.*|index.*\.json|\w+-\d+-\d+\.(bin|log_probs)"
)


class ShardFolder(ABC):
    """A folder of token shards.

    Attributes:
        url: a path, or a URL
        interval: seconds between two looks at the index
    """

    url: str
    interval: float

    @abstractmethod
    def read_index(self) -> ShardIndex | None:
        """The index as it is now; None if there is none yet."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shards."""

    @abstractmethod
    def open(self, file: str, dtype: np.dtype, shard: Shard) -> np.ndarray:
        """The ids of a file, memory-mapped, (tokens,); DataError if it is not the one in the index."""


class LocalFolder(ShardFolder):
    """A folder on this machine, or on a file system that several machines share."""

    interval = 0.5

    def __init__(self, path: str, cache_dir: Path) -> None:
        self.url, self._cache_dir = path, cache_dir
        self._path = Path(os.path.expanduser(path))  # noqa: PTH111 (of a text)

    def read_index(self) -> ShardIndex | None:
        """The index as it is now, joined from those of several processes; None if there is none yet.

        Raises:
            DataError: if it is damaged, or the folder holds something else.
        """
        for attempt in range(TRIES):
            with contextlib.suppress(DataError):  # a file that has just been joined with others is gone
                return read_folder(self._path)
            if not index_files(self._path):
                self._refuse_others()
                return None
            time.sleep(self.interval if attempt else 0)
        return read_folder(self._path)

    def _refuse_others(self) -> None:
        names = {path.name for path in self._path.iterdir()} if self._path.is_dir() else set()
        others = [name for name in names if not BEING_WRITTEN.fullmatch(name)]
        if others or self._path.is_file():
            raise DataError(f"data.corpus: {self.url}: holds no token shards, which data.streaming needs; leave it out")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards."""
        return load_tokenizer(self._path / TOKENIZER)

    def open(self, file: str, dtype: np.dtype, shard: Shard) -> np.ndarray:
        """The ids of a file whose SHA-256 is that of the index."""
        source = Source(str(self._path / file), cache_dir=self._cache_dir)
        if source.size != shard.tokens * dtype.itemsize or source.fingerprint() != shard.sha256:
            raise DataError(f"{source.url}: is damaged (its SHA-256 is not that of the index); build it again")
        return np.memmap(source.url, dtype, "r") if shard.tokens else np.empty(0, dtype)


class RemoteFolder(ShardFolder):
    """A folder at a URL. Its shards are downloaded when they are needed, to a cache of bounded size."""

    interval = 5.0

    def __init__(self, url: str, cache: ShardCache) -> None:
        self.url, self._cache = url.rstrip("/"), cache

    def read_index(self) -> ShardIndex:
        """The index as it is now, which must be there; MissingInputError if it cannot be read."""
        return ShardIndex.load(self._cache.fetch_small(f"{self.url}/{INDEX}"))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards."""
        url = f"{self.url}/{TOKENIZER}"
        return Tokenizer.from_dict(parse_json(self._cache.fetch_small(url).read_bytes(), url), url)

    def open(self, file: str, dtype: np.dtype, shard: Shard) -> np.ndarray:
        """The ids of a file, downloaded and verified unless the cache has it."""
        if not shard.tokens:
            return np.empty(0, dtype)
        size = shard.tokens * dtype.itemsize
        return self._cache.open(f"{self.url}/{file}", size, shard.sha256, lambda path: np.memmap(path, dtype, "r"))


class ShardStream:
    """The shards of a folder in order. It waits for shards that do not exist yet.

    Args:
        folder: the folder
        patience: seconds without any new shard after which waiting ends with an error

    Attributes:
        while_waiting: called about twice a second while a shard is waited for; may raise
    """

    def __init__(self, folder: ShardFolder, patience: float) -> None:
        if patience <= 0:
            raise ConfigError(f"data.shard_timeout must be above 0 seconds, got {patience:g}")
        self.folder, self._patience = folder, patience
        self._index: ShardIndex | None = None
        self._open: dict[ShardKey, np.ndarray] = {}
        self.while_waiting: Callable[[], None] = lambda: None

    @property
    def index(self) -> ShardIndex:
        """The index as it was last read; waits for the first."""
        return self._wait(lambda index: True, INDEX)

    def shard(self, part: str, number: int) -> tuple[ShardKey, Shard] | None:
        """The key and the record of the n-th shard of a part; None if the part has fewer. Waits until that is known."""
        if part not in self.index.parts:
            return None
        index = self._wait(lambda index: index.complete or len(available(index, part)) > number, f"{part} {number}")
        return dict(enumerate(available(index, part))).get(number)

    def length(self, part: str, number: int) -> int | None:
        """The tokens of the n-th shard of a part; None if the part has fewer. Waits until that is known."""
        found = self.shard(part, number)
        return None if found is None else found[1].tokens

    def tokens(self, part: str, number: int) -> np.ndarray:
        """The ids of the n-th shard of a part, memory-mapped, (tokens,); the shard must exist, or be expected."""
        found = self.shard(part, number)
        if found is None:
            raise DataError(f"data.corpus: {self.folder.url}: has no shard {number} of its part {part}")
        key, shard = found
        if key not in self._open:
            ids = self.folder.open(key.file, np.dtype(self.index.dtype), shard)
            while len(self._open) >= MAPPED:
                del self._open[next(iter(self._open))]
            self._open[key] = ids
        return self._open[key]

    def _wait(self, ready: Callable[[ShardIndex], bool], what: str) -> ShardIndex:
        """The index, as soon as it satisfies a condition.

        Raises:
            MissingInputError: if nothing has changed for too long.
        """
        changed, told = time.monotonic(), False
        while self._index is None or not ready(self._index):
            fresh = self.folder.read_index()
            if fresh is not None and (self._index is None or _state(fresh) != _state(self._index)):
                if self._index is not None and fresh.source != self._index.source:
                    raise DataError(f"data.corpus: {self.folder.url}: is now of another text or tokenizer; start again")
                self._index, changed = fresh, time.monotonic()
                continue
            if time.monotonic() - changed > self._patience:
                raise MissingInputError(
                    f"data.corpus: {self.folder.url}: no new shard for {self._patience:g} s (data.shard_timeout), and "
                    f"{what} is missing; start `{command('prepare', 'tokens')}` again, then resume"
                )
            if not told:
                notice(f"{self.folder.url}: waiting for {what}, which is not there yet")
                told = True
            self._rest()
        return self._index

    def _rest(self) -> None:
        end = time.monotonic() + self.folder.interval
        while (left := end - time.monotonic()) > 0:
            self.while_waiting()
            time.sleep(min(left, 0.5))


def available(index: ShardIndex, part: str) -> list[tuple[ShardKey, Shard]]:
    """The shards of a part in order, up to the first that does not exist yet."""
    found = []
    for group, counts in enumerate(index.groups):
        number = 0
        while (shard := index.shards.get(key := ShardKey(part, group, number))) is not None:
            found.append((key, shard))
            number += 1
        if counts is None or number < counts.get(part, 0):
            break
    return found


def _state(index: ShardIndex) -> tuple[int, int]:
    """The number of shards and of unread groups, which change while a folder is built."""
    return len(index.shards), index.groups.count(None)
