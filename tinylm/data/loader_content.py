"""LoaderContent: the batches of the user's own data module, in the order in which its loaders give them.

The loader of an epoch is read from its start, and its random numbers are a function of (seed, epoch, batch). So a
resumed run skips to its batch, or asks the loader for its state, and sees the same data. All devices read the same
batches, and each takes its own in turn.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch.utils.data import Dataset, DistributedSampler

from tinylm.data.batches import Batch
from tinylm.data.content import Content
from tinylm.data.loader_batches import LoaderBatches, Restored, as_batch, drawn_by
from tinylm.data.text_content import first_words
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import Tokenizer


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


@dataclass(frozen=True)
class LoaderOrder:
    """The order of a loader, which is its own."""

    version: ClassVar[int] = 1


class LoaderContent(Content):
    """The data of the user's own data module.

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
        """The fingerprint of the data module; empty if it has none."""
        return str(getattr(self.given, "fingerprint", "") or "")

    @property
    def order(self) -> LoaderOrder:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The order of the loader."""
        return LoaderOrder()

    def defines(self, part: str) -> bool:
        """Whether the data module has a loader of a part: `train`, `val`, `test` or `predict`."""
        name = f"{part}_dataloader"
        method = getattr(type(self.given), name, None)
        own = method is not None and not method.__module__.startswith("lightning.")
        return own or name in vars(self.given)  # as `LightningDataModule.from_datasets` sets them

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
                raise ConfigError(
                    f"data: {name} has a DistributedSampler; leave it out, since batches are dealt in turn"
                )
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
