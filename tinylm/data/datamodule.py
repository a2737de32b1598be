"""TextDataModule: corpus, tokenizer and token cache as Lightning's data loaders.

`batch_size` is the global batch: sequences in one optimizer step, over all devices and accumulated micro-batches. What
one device takes at once is `micro_batch_size`, and accumulation follows from the two, so that steps, schedule and
results do not change with the hardware.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from tinylm.data.batches import (
    Batch,
    DocumentWindows,
    Rows,
    TrainingWindows,
    document_begins,
    document_rows,
    gather,
    gather_rows,
    window_rows,
    without_targets,
)
from tinylm.data.corpus import Corpus, check_split, open_corpus
from tinylm.data.floor import Floor
from tinylm.data.tokens import is_tokenizer_file, open_log_probs, open_tokens, resolve_tokenizer
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import default_cache_dir, read_chunks
from tinylm.tokenizer import Tokenizer, load_tokenizer


def _check_options(errors: str, seed: int, **sizes: int | None) -> None:
    if errors not in ("strict", "replace"):
        raise ConfigError(f"data.errors must be strict or replace, got {errors!r}")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name} must be at least 1, got {value}")
    if seed < 0:
        raise ConfigError(f"data.seed must not be negative, got {seed}")


class TextDataModule(pl.LightningDataModule):
    """Batches of tokens from a text."""

    def __init__(
        self,
        corpus: str = "stories",
        tokenizer: str = "char",
        max_seq_len: int = 256,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        split: tuple[float, ...] = (0.9, 0.1),
        seed: int = 0,
        errors: str = "strict",
        num_workers: int = 0,
        train_tokens: int | None = None,
        cache_dir: str | None = None,
        text: str | None = None,
    ) -> None:
        """A text to train on.

        Args:
            corpus: stories, tinyshakespeare, tinystories, or a text file, a glob of them, a URL, a *.grammar.yaml.
                stories:20000 generates 20,000 stories instead of 8,000
            tokenizer: char, byte, or bpe (bpe:2048 with its size), learned from the corpus; or the file of a saved one
            max_seq_len: tokens in a sequence; in a training run it is the network's
            batch_size: sequences in one optimizer step, over all devices and accumulated micro-batches
            micro_batch_size: sequences that one device takes at once. Empty: its whole share of the batch
            split: fractions of train and val, or of train, val and test
            seed: of the order of the training windows, and of the generated stories
            errors: bytes that are not UTF-8 are an error (strict) or become U+FFFD (replace)
            num_workers: processes that gather batches. 0: the training process itself
            train_tokens: train on this many tokens from the beginning only. Empty: on all
            cache_dir: for encoded texts and downloads. Empty: $TINYLM_CACHE or ~/.cache/tinylm
            text: a text file, for `predict`
        """
        super().__init__()
        sizes = dict(max_seq_len=max_seq_len, batch_size=batch_size)
        _check_options(errors, seed, **sizes, micro_batch_size=micro_batch_size, train_tokens=train_tokens)
        self.source, self.tokenizer_spec, self.context = corpus, tokenizer, max_seq_len
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.split, self.seed, self.num_workers = check_split(split), seed, num_workers
        self.train_tokens = train_tokens
        saved = load_tokenizer(tokenizer) if is_tokenizer_file(tokenizer) else None
        if saved is not None:
            self.use_tokenizer(saved)
        # The byte tokenizer takes any bytes: those that are no UTF-8 travel through the text as lone surrogates.
        takes_bytes = "byte" in (tokenizer, saved and saved.kind)
        self.errors = "surrogateescape" if takes_bytes and errors == "strict" else errors
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.text = text
        self._counted: pl.Trainer | None = None  # the trainer whose val_check_interval is in micro-batches by now

    # --- resolved when first asked for, before any process group exists

    @cached_property
    def corpus(self) -> Corpus:
        """The text."""
        return open_corpus(self.source, split=self.split, cache_dir=self.cache_dir, seed=self.seed, errors=self.errors)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, its vocabulary taken from the text if that is what `tokenizer` says."""
        return resolve_tokenizer(self.tokenizer_spec, self.corpus, self.cache_dir)

    @property
    def vocab_size(self) -> int:
        """What the network's `vocab_size` is linked to."""
        return self.tokenizer.vocab_size

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """The ids of each part."""
        tokens = open_tokens(self.corpus, self.tokenizer, self.cache_dir)
        return tokens | {"train": tokens["train"][: self.train_tokens]}

    @cached_property
    def floors(self) -> dict[str, Floor]:
        """The best possible loss on each part that is evaluated; empty where the corpus does not know it.

        It needs a tokenizer with an `<|endoftext|>`, which tells the documents apart.
        """
        end = self.tokenizer.end_of_text
        if not self.corpus.has_floor or end is None:
            return {}
        log_probs = open_log_probs(self.corpus, self.tokenizer, self.cache_dir)
        lengths = self.tokenizer.byte_lengths
        return {part: Floor.of(self.tokens[part], end, lengths, nats) for part, nats in log_probs.items()}

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Takes a trained model's tokenizer instead of the one that the corpus would give."""
        self.__dict__["tokenizer"] = tokenizer

    # --- how the global batch is shared out

    def setup(self, stage: str) -> None:
        """Checks the text and the batch against the trainer, and sets accumulation."""
        if stage == "fit":
            self._part("val")
            self._windows()
            self._set_accumulation()

    def _windows(self) -> TrainingWindows:
        """The order of the training tokens: by document where the loss is to be compared with a floor."""
        tokens, end = self._part("train"), self.tokenizer.end_of_text
        if self.corpus.has_floor and end is not None:
            rows = document_rows(document_begins(tokens, end), len(tokens), self.context)
            return DocumentWindows(len(tokens), self.context, self.batch_size, self.seed, begins=rows.begins)
        return TrainingWindows(len(tokens), self.context, self.batch_size, self.seed)

    def _set_accumulation(self) -> None:
        assert self.trainer is not None
        share, remainder = divmod(self.batch_size, self.trainer.world_size)
        if remainder:
            raise ConfigError(
                f"data.batch_size must be divisible by the number of devices, "
                f"got {self.batch_size} and {self.trainer.world_size}"
            )
        micro = self.micro_batch_size or share
        if share % micro:
            raise ConfigError(
                f"data.batch_size / devices must be divisible by data.micro_batch_size, got {share} and {micro}"
            )
        if self.trainer.accumulate_grad_batches not in (1, share // micro):
            raise ConfigError(
                "trainer.accumulate_grad_batches follows from data.batch_size and data.micro_batch_size; leave it out"
            )
        self.trainer.accumulate_grad_batches = share // micro
        if isinstance(self.trainer.val_check_interval, int) and self._counted is not self.trainer:
            self.trainer.val_check_interval *= share // micro  # Lightning counts micro-batches, we count steps
            self._counted = self.trainer

    def _part(self, name: str) -> np.ndarray:
        if name not in self.tokens:
            raise ConfigError(f"data.split has no {name} part: give three fractions, such as [0.8, 0.1, 0.1]")
        if name != "train" and len(self.tokens[name]) < 2:
            raise DataError(f"{name} has {len(self.tokens[name])} tokens, needs at least 2; give it more of data.split")
        return self.tokens[name]

    # --- loaders

    def train_dataloader(self) -> DataLoader:
        """Micro-batches in the order of `TrainingWindows`, from where the run stands."""
        trainer = self.trainer
        assert trainer is not None
        windows = self._windows()
        accumulate = int(trainer.accumulate_grad_batches)
        dataset = TrainingBatches(self._part("train"), windows, accumulate, trainer.world_size, trainer.global_rank)

        def position() -> int:  # micro-batches in all steps so far: runs are saved after whole steps only
            return trainer.global_step * accumulate

        sampler = MicroSteps(windows.steps_per_epoch * accumulate, position)
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The whole validation part, in order; each document from its start where there is a floor."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """The whole test part, in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        """The text of `data.text`, in order."""
        if self.text is None:
            raise ConfigError("data.text: missing; give the text file to predict, --data.text FILE")
        if not Path(self.text).is_file():
            raise MissingInputError(f"data.text: {self.text}: no such file")
        ids = np.concatenate(list(self.tokenizer.encode_stream(read_chunks(Path(self.text), self.errors))) or [[]])
        if len(ids) < 2:
            raise DataError(f"data.text: {self.text}: has {len(ids)} tokens, needs at least 2")
        return self._evaluation_loader(ids, window_rows(len(ids), self.context))

    def _evaluation(self, part: str) -> DataLoader:
        tokens = self._part(part)
        if part not in self.floors:
            return self._evaluation_loader(tokens, window_rows(len(tokens), self.context))
        floor = self.floors[part]
        return self._evaluation_loader(tokens, document_rows(floor.begins, len(tokens), self.context, floor.log_probs))

    def _evaluation_loader(self, tokens: np.ndarray, rows: Rows) -> DataLoader:
        """Each process takes every world_size-th batch: no row is counted twice to even things out."""
        trainer = self.trainer
        assert trainer is not None
        size = self.micro_batch_size or max(1, self.batch_size // trainer.world_size)
        dataset = EvaluationBatches(tokens, rows, size, trainer.world_size, trainer.global_rank)
        return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=self.num_workers)


@dataclass(frozen=True)
class TrainingBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate."""

    tokens: np.ndarray
    windows: TrainingWindows
    accumulate: int
    world_size: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self.accumulate)
        shares = self.windows.starts(step).reshape(self.world_size, self.accumulate, -1)
        num_targets = self.windows.batch_size * self.windows.context
        return gather(self.tokens, shares[self.rank, micro_step], self.windows.context, num_targets)


@dataclass(frozen=True)
class EvaluationBatches(Dataset[Batch]):
    """Item i is this process's i-th batch of evaluation rows.

    All processes have as many batches, since those that hold parts of one model compute together. One that has run out
    of rows gets one without targets.
    """

    tokens: np.ndarray
    rows: Rows
    batch_size: int
    world_size: int
    rank: int

    def __len__(self) -> int:
        return -(-len(self.rows.begins) // (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        if first < len(self.rows.begins):
            return gather_rows(self.tokens, self.rows, slice(first, first + self.batch_size))
        return without_targets(gather_rows(self.tokens, self.rows, slice(1)))


class MicroSteps(Sampler[int]):
    """The indices of an epoch's micro-batches, from where the run stands to the epoch's end."""

    def __init__(self, per_epoch: int, position) -> None:
        self.per_epoch, self.position = per_epoch, position

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.position()
        return iter(range(start, (start // self.per_epoch + 1) * self.per_epoch))
