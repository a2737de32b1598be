"""StreamContent: training on token shards, one after the other, while they are built or downloaded."""

import re
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from tinylm.data.batches import Batch, windows_at, windows_batch
from tinylm.data.content import Content, Settings
from tinylm.data.corpora import NAMES
from tinylm.data.evaluation_rows import EvaluationBatches, spaced_window_rows
from tinylm.data.pretokenized.own import own_fingerprint
from tinylm.data.shard_cache import ShardCache
from tinylm.data.shard_content import prompt_from
from tinylm.data.shard_order import ShardOrder
from tinylm.data.shard_stream import LocalFolder, RemoteFolder, ShardStream, available
from tinylm.errors import ConfigError, DataError, notice
from tinylm.files import sha256_bytes
from tinylm.tokenizer import Tokenizer


class StreamContent(Content):
    """A folder of `tinylm prepare tokens`, complete or not, on this machine or at a URL.

    Training takes its shards one after the other. Evaluation reads the first shard of `val` (or `test`), since no
    others may exist yet.

    Args:
        source: the folder
        settings: options of the data module
        patience: seconds without any new shard after which a run ends with an error
        max_cache: bytes of downloaded shards to keep

    Raises:
        ConfigError: for a source or an option that cannot be streamed.
    """

    def __init__(self, source: str, settings: Settings, patience: float, max_cache: int) -> None:
        self.source, self.settings = source, settings
        if source in NAMES or re.match(r"stories:|lines:|hf:(?!//)|.*\.grammar\.ya?ml", source):
            raise ConfigError(f"data.streaming: is for token shards, not for {source}; write them by prepare tokens")
        if settings.train_tokens is not None:
            raise ConfigError("data.train_tokens: does not work with data.streaming; leave it out")
        if "://" in source:
            folder = settings.cache_dir / "shards" / sha256_bytes(source.encode())[:16]
            self.stream = ShardStream(RemoteFolder(source, ShardCache(folder, max_cache)), patience)
        else:
            self.stream = ShardStream(LocalFolder(source, settings.cache_dir), patience)

    def _find_tokenizer(self) -> Tokenizer:
        expected = self.stream.index.tokenizer  # waits until the folder is there
        tokenizer = self.stream.folder.tokenizer()
        if tokenizer.sha256 != expected:
            raise DataError(f"data.corpus: {self.source}: its tokenizer is not that of its shards; restore that one")
        return tokenizer

    @cached_property
    def _checked(self) -> ShardStream:
        """The shards, after a check that the tokenizer in use made their ids."""
        recorded, used = self._find_tokenizer(), self.tokenizer
        if used.token_bytes[: recorded.vocab_size] != recorded.token_bytes:
            raise ConfigError(f"data.tokenizer: is not the one of the shards in {self.source}; leave it out")
        return self.stream

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text of the splits and the tokenizer; the same whether all shards are there or not."""
        return own_fingerprint(self.stream.index)

    @cached_property
    def order(self) -> ShardOrder:
        """The order by shard."""
        stream, each = self._checked, self.settings
        first, state = stream.length("train", 0) or 0, "complete" if stream.index.complete else "being written"
        notice(f"{self.source}: token shards, {state}; order: by shard, the first of {first:,} tokens")
        return ShardOrder(lambda number: stream.length("train", number), each.context, each.batch_size, each.seed)

    @property
    def num_sequences(self) -> int:
        """Windows in the shards known so far; waits for the windows of one step, if there are so many."""
        return self.order.known(self.settings.batch_size.final)

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""
        return "val" in self._checked.index.parts

    @property
    def sequence_length(self) -> int:
        """Tokens in a window."""
        return self.settings.context

    def num_tokens(self, part: str) -> int:
        """Tokens in the shards of `train` known so far, or in the shard of another part that is evaluated."""
        if part == "train":
            return sum(shard.tokens for _, shard in available(self._checked.index, part))
        return len(self._evaluated(part))

    def _evaluated(self, part: str) -> np.ndarray:
        """The first shard of a part that can be evaluated."""
        stream, number = self._checked, 0
        while (length := stream.length(part, number)) is not None and length < 2:
            number += 1
        if length is None:
            raise ConfigError(f"data.corpus: {self.source}: has no tokens of a {part} part; split the text to have one")
        return stream.tokens(part, number)

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches of windows."""
        return StreamBatches(self._checked, self.order, accumulate, world_size, rank)

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of adjacent windows."""
        tokens = self._evaluated(part)
        rows = spaced_window_rows(len(tokens), self.settings.context, max_tokens)
        return EvaluationBatches(tokens, rows, batch_size, world_size, rank)

    def example_prompt(self) -> str:
        """The first words of a document."""
        return prompt_from(self._evaluated("val")[:200], self.tokenizer)


class StreamBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate.

    All processes wait for all shards of a step before its first micro-batch, so that no process waits within a step.
    """

    def __init__(self, stream: ShardStream, order: ShardOrder, accumulate: int, world_size: int, rank: int) -> None:
        self._stream, self._order = stream, order
        self._accumulate, self._world_size, self._rank = accumulate, world_size, rank

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self._accumulate)
        shards, starts = self._order.windows(step)
        tokens = {number: self._stream.tokens("train", number) for number in np.unique(shards).tolist()}
        share = np.arange(len(shards)).reshape(self._world_size, self._accumulate, -1)[self._rank, micro_step]
        windows = np.empty((len(share), self._order.context + 1), np.int64)
        for number, ids in tokens.items():
            rows = shards[share] == number
            windows[rows] = windows_at(ids, starts[share][rows], self._order.context)
        return windows_batch(windows, len(shards) * self._order.context)
