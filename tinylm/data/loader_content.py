"""LoaderContent: the batches of a data module of one's own, in the order in which its loaders give them.

The loader of an epoch is read from its start, and its random numbers are a function of (seed, epoch, batch). So a
resumed run skips to its batch, or asks the loader for its state, and sees the same data. Several devices read the same
batches and each takes its own, by turns.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from tinylm.data.batches import IGNORE, Batch, without_targets
from tinylm.data.content import Content
from tinylm.data.text_content import first_words
from tinylm.errors import ConfigError, DataError, notice
from tinylm.tokenizer import Tokenizer

FORM = "a batch is tinylm.data.Batch, or inputs and targets of one shape (B, T), in a tuple or a dict"


class BatchSource(Protocol):
    """The parts of a LightningDataModule that a run reads.

    A loader is a DataLoader or any iterable that can be read more than once. It gives `Batch`, or a tuple or dict of
    `inputs` and `targets`: token ids of an integer type, (B, T), T at most `max_seq_len`, IGNORE (-100) where no target
    counts. In that short form all micro-batches of an optimizer step count the same.

    Optional attributes are `fingerprint`, by which a resumed run recognizes its text; `batch_size`, sequences in a
    batch; and `example_prompt()`, the prompt of the samples. `prepare_data` and `setup` are called as Lightning does,
    `val_dataloader`, `test_dataloader` and `predict_dataloader` only if they are defined.

    Attributes:
        tokenizer: the tokenizer of the ids, known after `setup("fit")` at the latest
    """

    tokenizer: Tokenizer

    def train_dataloader(self) -> Iterable[Any]:
        """The micro-batches of an epoch. Without a length, the run has no epochs and needs `trainer.max_steps`."""
        ...


def as_batch(given: Any, tokenizer: Tokenizer, context: int, micro_batches: int = 1) -> Batch:
    """A batch of a loader in the form that training takes.

    Args:
        given: `Batch`, or inputs and targets
        tokenizer: the tokenizer of the ids
        context: most tokens of a sequence
        micro_batches: micro-batches of an optimizer step over all devices, which then count the same

    Raises:
        DataError: for any other object, and for ids outside the vocabulary.
    """
    if isinstance(given, Batch):
        batch = given
    else:
        pair = [given.get("inputs"), given.get("targets")] if isinstance(given, Mapping) else given
        tensors = [each for each in pair if isinstance(each, Tensor)] if isinstance(pair, tuple | list) else []
        if len(tensors) != 2 or len(pair) != 2:
            raise DataError(f"data: a loader gives {type(given).__name__}; {FORM}")
        inputs, targets = (each.long() for each in tensors)
        batch = Batch(inputs, targets, max(1, int((targets != IGNORE).sum())) * micro_batches)
    inputs, targets = batch.inputs, batch.targets
    if inputs.ndim != 2 or inputs.shape != targets.shape or not inputs.numel():
        raise DataError(f"data: inputs are {tuple(inputs.shape)} and targets {tuple(targets.shape)}; {FORM}")
    if inputs.shape[1] > context:
        raise DataError(f"data: a batch has {inputs.shape[1]} tokens a sequence, max_seq_len is {context}; raise it")
    counted = targets[targets != IGNORE]
    for ids in (inputs, counted):
        least, most = (int(each) for each in torch.aminmax(ids)) if ids.numel() else (0, 0)
        if least < 0 or most >= tokenizer.vocab_size:
            wrong = least if least < 0 else most
            raise DataError(f"data: token id {wrong} is outside the vocabulary of {tokenizer.vocab_size} tokens")
    return batch


@contextlib.contextmanager
def drawn_by(*key: Any) -> Iterator[None]:
    """Makes the random numbers of PyTorch, NumPy and Python a function of a key, and restores their state."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass
class Restored:
    """The position of a resumed run, as far as the data keep it themselves.

    Attributes:
        state: that of the loader, for its `load_state_dict`
        by_module: whether the data module has restored its own
    """

    state: Any = None
    by_module: bool = False


class LoaderBatches(Dataset[Batch]):
    """Item i is this process's micro-batch i, counted over all epochs. Items are read in order; any other is sought.

    Args:
        loader: the micro-batches of an epoch
        per_epoch: micro-batches of this process in an epoch; None: the loader has no length
        share: number of processes that read different batches, and the number of this one
        key: determines the random numbers, with the epoch and the batch
        convert: makes a `Batch` of the loader's
        restored: where a resumed run goes on; used up by the first item
        accumulate: micro-batches of a step, which lie in one epoch; matters without a length
    """

    def __init__(
        self,
        loader: Any,
        per_epoch: int | None,
        share: tuple[int, int],
        key: tuple[Any, ...],
        convert: Callable[[Any], Batch],
        restored: Restored | None = None,
        accumulate: int = 1,
    ) -> None:
        self.loader, self.per_epoch, self.key, self.convert = loader, per_epoch, key, convert
        self.world_size, self.rank = share
        self.restored, self.accumulate = restored or Restored(), accumulate
        self._next: int | None = None
        self._iterator: Iterator[Any] = iter(())
        self._epoch = self._read = 0  # batches read in this epoch
        self._ahead: list[list[Any]] = []  # the blocks of a step, of a loader without a length

    def __len__(self) -> int:
        assert self.per_epoch is not None
        return self.per_epoch

    def __getitem__(self, index: int) -> Batch:
        if index != self._next:
            self._seek(index)
        elif self.per_epoch is not None and index % self.per_epoch == 0:
            self._begin(index // self.per_epoch)
        block = self._next_block()
        self._next = index + 1
        return self.convert(block[self.rank]) if self.rank < len(block) else without_targets(self.convert(block[0]))

    def _seek(self, index: int) -> None:
        """Makes item `index` the next one."""
        epoch, place = (0, index) if self.per_epoch is None else divmod(index, self.per_epoch)
        state, by_module = self.restored.state, self.restored.by_module
        self.restored.state, self.restored.by_module = None, False
        if by_module or (state is not None and place):
            if state is not None:
                self.loader.load_state_dict(state)
            self._begin(epoch, place * self.world_size)
            return
        self._begin(epoch)
        if place:
            notice(f"reading {place * self.world_size:,} batches of the data again, to go on behind them")
        for _ in range(place):
            self._next_block()

    def _begin(self, epoch: int, read: int = 0) -> None:
        self._epoch, self._read, self._ahead = epoch, read, []
        set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        with drawn_by(*self.key, epoch):
            self._iterator = iter(self.loader)

    def _block(self) -> list[Any]:
        """The next batch of each process; at the end of an evaluation there may be fewer."""
        block: list[Any] = []
        for _ in range(self.world_size):
            with drawn_by(*self.key, self._epoch, self._read):
                batch = next(self._iterator, None)
            if batch is None:
                break
            self._read += 1
            block.append(batch)
        if self.per_epoch is not None and not block:
            raise DataError(f"data: the loader ended after {self._read:,} batches; it must give as many as its length")
        return block

    def _next_block(self) -> list[Any]:
        """The next block; of a loader without a length that of a whole step, so that no step lies in two epochs."""
        if self.per_epoch is not None:
            return self._block()
        if not self._ahead:
            self._ahead = [self._block() for _ in range(self.accumulate)]
        if len(self._ahead[-1]) < self.world_size:
            if self._read < self.accumulate * self.world_size:
                raise DataError(f"data: an epoch of the loader has {self._read:,} batches, less than a step; give more")
            self._begin(self._epoch + 1)
            return self._next_block()
        return self._ahead.pop(0)


@dataclass(frozen=True)
class LoaderOrder:
    """The order of a loader, which is its own."""

    version: ClassVar[int] = 1


class LoaderContent(Content):
    """The data of a data module of one's own.

    Args:
        given: the data module; its `prepare_data` and `setup` have been called when a loader is asked for
        name: its class path
        context: most tokens of a sequence
        seed: seed of its random numbers
    """

    def __init__(self, given: Any, name: str, context: int, seed: int) -> None:
        self.given, self.source, self.context, self.seed = given, name, context, seed
        self.restored = Restored()
        self._loaders: dict[str, Any] = {}
        self._first: Batch | None = None

    def _find_tokenizer(self) -> Tokenizer:
        tokenizer = getattr(self.given, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer):
            shown = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__} as its tokenizer"
            raise ConfigError(f"data: {self.source} has {shown}; set self.tokenizer, a tinylm.tokenizer.Tokenizer")
        return tokenizer

    @property
    def fingerprint(self) -> str:
        """That of the data module; empty if it has none."""
        return str(getattr(self.given, "fingerprint", "") or "")

    @property
    def order(self) -> LoaderOrder:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The order of the loader."""
        return LoaderOrder()

    def defines(self, part: str) -> bool:
        """Whether the data module has a loader of a part: `train`, `val`, `test` or `predict`."""
        method = getattr(type(self.given), f"{part}_dataloader", None)
        return method is not None and not method.__module__.startswith("lightning.")

    def loader(self, part: str) -> Any:
        """The loader of a part; errors for none, for several, and for one that can be read once."""
        if part not in self._loaders:
            name = f"{self.source}.{part}_dataloader"
            found = getattr(self.given, f"{part}_dataloader")() if self.defines(part) else None
            if found is None:
                raise ConfigError(f"data: {self.source} gives no {part}_dataloader; define it")
            if isinstance(found, list | tuple | dict) or not isinstance(found, Iterable):
                raise ConfigError(f"data: {name} gives a {type(found).__name__}; give one DataLoader or iterable")
            if isinstance(found, Iterator):
                raise ConfigError(f"data: {name} gives an iterator, which can be read once; give a DataLoader")
            if isinstance(getattr(found, "sampler", None), DistributedSampler):
                raise ConfigError(f"data: {name} has a DistributedSampler; leave it out, as batches are dealt by turns")
            self._loaders[part] = found
        return self._loaders[part]

    def num_batches(self, part: str) -> int | None:
        """Batches of a part; None if its loader has no length."""
        with contextlib.suppress(TypeError, NotImplementedError):  # an IterableDataset in a DataLoader
            return len(self.loader(part))
        return None

    @property
    def has_state(self) -> bool:
        """Whether the loader keeps its position itself, so that it must not be read before the run."""
        return hasattr(self.loader("train"), "load_state_dict") or self.restores_itself

    @property
    def restores_itself(self) -> bool:
        """Whether the data module restores its position by `load_state_dict`."""
        return not type(self.given).load_state_dict.__module__.startswith("lightning.")

    @property
    def first(self) -> Batch | None:
        """The first training batch; None if reading it would move the position."""
        if self._first is None and not self.has_state:
            batches = LoaderBatches(self.loader("train"), None, (1, 0), (self.seed, "train"), self.converted)
            self._first = batches[0]
        return self._first

    @property
    def rows(self) -> int:
        """Sequences in a batch; 0 if unknown."""
        known = getattr(self.given, "batch_size", None) or getattr(self.loader("train"), "batch_size", None)
        return len(self.first.inputs) if self.first is not None else known if isinstance(known, int) else 0

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch; 0 if unknown."""
        return (self.num_batches("train") or 0) * self.rows

    @property
    def sequence_length(self) -> int:
        """Tokens in a training sequence."""
        return self.context if self.first is None else self.first.inputs.shape[1]

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""
        return self.defines("val")

    def num_tokens(self, part: str) -> int:
        """Tokens in a split, as many in each batch as in the first of training; 0 if unknown."""
        self.loader(part)
        return (self.num_batches(part) or 0) * self.rows * self.sequence_length

    def converted(self, given: Any, micro_batches: int = 1) -> Batch:
        """A batch of a loader, checked."""
        return as_batch(given, self.tokenizer, self.context, micro_batches)

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches."""
        count, micro_batches = self.num_batches("train"), accumulate * world_size
        per_epoch = None if count is None else count // micro_batches * accumulate
        return LoaderBatches(
            self.loader("train"), per_epoch, (world_size, rank), (self.seed, "train"),
            lambda batch: self.converted(batch, micro_batches), self.restored, accumulate,
        )  # fmt: skip

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of a split, all of it."""
        loader, count = self.loader(part), self.num_batches(part)
        if count is None:
            with drawn_by(self.seed, part):
                count = sum(1 for _ in loader)
        if not count:
            raise DataError(f"data: {self.source}.{part}_dataloader gives no batch")
        return LoaderBatches(loader, -(-count // world_size), (world_size, rank), (self.seed, part), self.converted)

    def example_prompt(self) -> str:
        """The prompt of the data module, or the first words of its first training sequence."""
        if hasattr(self.given, "example_prompt"):
            return self.given.example_prompt()
        return "" if self.first is None else first_words(self.tokenizer.decode(self.first.inputs[0].tolist()))
