"""Batches of the user's own loader in the form that training takes, from any position of an epoch."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinylm.data.batches import Batch
from tinylm.data.evaluation_rows import without_targets
from tinylm.errors import DataError, notice
from tinylm.model.loss import IGNORE
from tinylm.tokenizer import Tokenizer

FORM = "a batch is tinylm.data.Batch, or inputs and targets of one shape (B, T), in a tuple or a dict"
COLLATED = {"input_ids", "attention_mask", "labels"}  # of transformers' data collators


def as_batch(given: Any, tokenizer: Tokenizer, context: int, micro_batches: int = 1) -> Batch:
    """A batch of a loader in the form that training takes.

    Args:
        given: `Batch`, inputs and targets, or a batch of transformers' data collators
        tokenizer: the tokenizer of the ids
        context: most tokens of a sequence
        micro_batches: micro-batches of an optimizer step over all devices, which count the same in the short form

    Raises:
        DataError: for any other object, and for ids outside the vocabulary.
    """
    if isinstance(given, Batch):
        batch = given
    else:
        pair = given
        if isinstance(given, Mapping):
            pair = _collated(given) if "input_ids" in given else [given.get("inputs"), given.get("targets")]
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


def _collated(given: Mapping[str, Any]) -> list[Tensor]:
    """Inputs and targets of a batch in transformers' form, in which the labels are not shifted.

    Without labels, the tokens are their own, but for padding.

    Raises:
        DataError: for padding before a text, and for other entries, which would change what a token sees.
    """
    if unknown := [*given.keys() - COLLATED]:
        raise DataError(f"data: a batch has {min(unknown)}, which is not read; {FORM}")
    ids, mask, labels = (given.get(name) for name in ("input_ids", "attention_mask", "labels"))
    tensors = [each for each in (ids, mask, labels) if each is not None]
    same = all(isinstance(each, Tensor) and each.ndim == 2 and each.shape == tensors[0].shape for each in tensors)
    if not same or ids is None:
        raise DataError("data: input_ids, attention_mask and labels must be tensors of one shape (B, T)")
    if mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
        raise DataError('data: attention_mask hides tokens before others; set padding_side="right" in the tokenizer')
    if labels is None:
        labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORE)
    return [ids[:, :-1], labels[:, 1:]]


def seed_of(key: Any) -> int:
    """A seed of 56 bits that depends on a plain value alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


@contextlib.contextmanager
def drawn_by(*key: Any) -> Iterator[None]:
    """Makes the random numbers of PyTorch, NumPy and Python a function of a key, and restores their state."""
    seed = seed_of(key)
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
    """The position of a resumed run, if the loader or the data module keeps it.

    Attributes:
        state: the loader's state, for its `load_state_dict`
        by_module: whether the data module has restored its own position
    """

    state: Any = None
    by_module: bool = False


class LoaderBatches(Dataset[Batch]):
    """Item i is this process's micro-batch i, counted over all epochs. Reading in order is fast; others are sought.

    Args:
        loader: the micro-batches of an epoch
        per_epoch: micro-batches of this process in an epoch; None: the loader has no length
        share: number of processes that read different batches, and the number of this one
        key: determines the random numbers, with the epoch and the batch
        convert: converts a batch of the loader to a `Batch`
        restored: the point where a resumed run continues; used by the first item only
        accumulate: micro-batches of a step, all in one epoch; needed for a loader without a length
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
        self._ahead: list[list[Any]] = []  # the blocks of a step, for a loader without a length

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
            notice(f"reading {place * self.world_size:,} batches of the data again, to continue after them")
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
            raise DataError(
                f"data: the loader ended after {self._read:,} batches; it must give as many as its length says"
            )
        return block

    def _next_block(self) -> list[Any]:
        """The next block. A loader without a length is read by whole steps, so that no step lies in two epochs."""
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
