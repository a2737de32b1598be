"""TextDataModule: a text, or pairs of prompts and responses, as Lightning's data loaders.

`batch_size` is the global batch: the sequences of one optimizer step, over all devices and micro-batches.
`micro_batch_size` is what one device computes at once. Accumulation follows from the two, so steps, schedule and
results do not depend on the hardware.
"""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Dataset

from tinylm.data.batches import (
    Batch,
    DocumentWindows,
    EvaluationBatches,
    MicroSteps,
    Rows,
    TrainingBatches,
    TrainingWindows,
    document_begins,
    document_rows,
    evenly_spaced,
    too_short,
    window_rows,
)
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.corpora import PARTS, REPAIR, Corpus, check_split, open_corpus
from tinylm.data.grammar.floor import Floor
from tinylm.data.pair_batches import (
    PairEvaluationBatches,
    PairRows,
    PairTrainingBatches,
    RowOrder,
    pack_rows,
    pad_rows,
    split_examples,
)
from tinylm.data.pairs import read_pairs
from tinylm.data.template import Example, Template, TooLong, encode_pairs, find_template
from tinylm.data.tokens import is_tokenizer_file, open_log_probs, open_tokens, resolve_tokenizer
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import default_cache_dir, read_chunks, sha256_file, sha256_json, why_unreadable
from tinylm.locate import command
from tinylm.tokenizer import Tokenizer, load_tokenizer

NO_END = (
    "trainer.max_steps: missing; set it or trainer.max_epochs, by which the learning rate falls "
    "(trainer.max_time may end the run earlier)"
)
VALIDATION_TOKENS = 1 << 17  # of a validation during training, at least


def _check_options(errors: str, seed: int, num_workers: int, **sizes: int | None) -> None:
    if errors not in ("strict", "replace"):
        raise ConfigError(f"data.errors must be strict or replace, got {errors!r}")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name} must be at least 1, got {value}")
    for name, value in (("seed", seed), ("num_workers", num_workers)):
        if value < 0:
            raise ConfigError(f"data.{name} must not be negative, got {value}")


def _sample_data(path: str) -> str:
    """The command that writes a file of pairs that the presets name, for an error; empty for any other."""
    folder = Path(path).parent
    written = folder.name in ("questions", "summaries")
    return f"; to write it: {command('prepare', folder.name, '--out', folder)}" if written else ""


def _micro_batches(interval: Any, steps: int, accumulate: int) -> Any:
    """An interval of the trainer in micro-batches, from one in optimizer steps or a fraction of `steps`."""
    if isinstance(interval, float) and interval != 1.0:
        interval = max(1, int(interval * steps)) if interval else 0
    return interval * accumulate if isinstance(interval, int) else interval  # a time, or None


def first_words(text: str, words: int = 4, characters: int = 40) -> str:
    """The first words of the first line that is not blank.

    >>> first_words("\\nOnce upon a time there was Ella.")
    'Once upon a time'
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return " ".join(line[:characters].split(" ")[:words]).strip()


class TextDataModule(pl.LightningDataModule):
    """Batches of tokens from a text, or from prompts and responses."""

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
        max_val_tokens: int | None = None,
        text: str | None = None,
        pairs: str | None = None,
        pairs_val: str | None = None,
        template: str = "pairs",
        fields: tuple[str, str] | None = None,
        packing: bool = False,
        too_long: TooLong = "error",
    ) -> None:
        """Creates the data module.

        Args:
            corpus: stories (stories:20000 for more), names, tinyshakespeare, tinystories, a file, a glob, a URL,
                lines:FILE (one document per line), or a *.grammar.yaml
            tokenizer: char, byte, word, bpe or bpe:SIZE, learned from the corpus; or a file or folder
            max_seq_len: Tokens per sequence; in a training run, that of the model
            batch_size: Sequences per optimizer step, over all devices
            micro_batch_size: Sequences per device at once. Default: all of its share
            split: Fractions of train and val, or of train, val and test
            seed: Seed of the order of data and of generated stories
            errors: Invalid UTF-8: strict (an error) or replace
            num_workers: Processes that load batches; 0 = this one
            train_tokens: Train on the first N tokens only
            cache_dir: Cache of encoded texts and downloads. Default: $TINYLM_CACHE or ~/.cache/tinylm
            max_val_tokens: Most tokens of a validation during training
            text: predict: the text file
            pairs: File of prompts and responses instead of a corpus: .jsonl, .json, .csv
            pairs_val: File of validation pairs. Default: val.* beside a train.*, else taken from pairs, by split
            template: Format of a pair: pairs (prompt, response) or chat (with roles; the model's own if it has one)
            fields: Names of prompt and response in the file, as [question,answer]
            packing: Pack several pairs into a sequence; needs document_mask
            too_long: Pairs beyond the context: error, drop, truncate
        """
        super().__init__()
        sizes: dict[str, int | None] = dict(max_seq_len=max_seq_len, batch_size=batch_size)
        sizes |= dict(micro_batch_size=micro_batch_size, train_tokens=train_tokens, max_val_tokens=max_val_tokens)
        _check_options(errors, seed, num_workers, **sizes)
        tokenizer = os.path.expanduser(tokenizer)  # noqa: PTH111 (a kind is no path)
        self.source, self.tokenizer_spec, self.context = corpus, tokenizer, max_seq_len
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.split, self.seed, self.num_workers = check_split(split), seed, num_workers
        self.train_tokens, self.max_val_tokens = train_tokens, max_val_tokens
        saved = load_tokenizer(tokenizer) if is_tokenizer_file(tokenizer) else None
        if saved is not None:
            self.use_tokenizer(saved)
        # The byte tokenizer accepts any bytes: invalid UTF-8 is represented by lone surrogates.
        takes_bytes = "byte" in (tokenizer, saved and saved.kind)
        self.errors = "surrogateescape" if takes_bytes and errors == "strict" else errors
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.text, self.pairs, self.pairs_val = text, pairs, pairs_val
        self._template, self.fields, self.packing = find_template(template), fields, packing
        self.too_long: TooLong = too_long
        if fields is not None and pairs is None:
            raise ConfigError("data.fields: is for data.pairs; leave it out")
        if pairs is not None:
            self._check_pairs()
            self.source = pairs
        self._counted: pl.Trainer | None = None  # its intervals are in micro-batches
        self.total_steps = 0  # of a run of the trainer, after `setup`
        self.validation_tokens: int | None = None  # the most of a validation during training; None: the whole split

    def _check_pairs(self) -> None:
        assert self.pairs is not None
        beside = Path(self.pairs).parent / f"val{Path(self.pairs).suffix}"
        if self.pairs_val is None and Path(self.pairs).stem == "train" and beside.expanduser().is_file():
            self.pairs_val = str(beside)
            notice(f"data.pairs_val: {beside}")
        for name, path in (("pairs", self.pairs), ("pairs_val", self.pairs_val)):
            if path is not None and (problem := why_unreadable(Path(path).expanduser())):
                raise MissingInputError(f"data.{name}: {path}: {problem}{_sample_data(path)}")
        if self.too_long not in ("error", "drop", "truncate"):
            raise ConfigError(f"data.too_long must be error, drop or truncate, got {self.too_long!r}")
        if self.train_tokens is not None:
            raise ConfigError("data.train_tokens is for texts; with data.pairs, give a shorter file")

    # --- computed at first use, before any process group exists

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus; raises ConfigError with `pairs`."""
        if self.pairs is not None:
            raise ConfigError(
                "data.tokenizer: use that of a trained model, by its folder; pairs are too few to learn one from"
            )
        return open_corpus(self.source, split=self.split, cache_dir=self.cache_dir, seed=self.seed, errors=self.errors)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or learned from the corpus."""
        return resolve_tokenizer(self.tokenizer_spec, self.corpus, self.cache_dir)

    @cached_property
    def template(self) -> Template | ChatTemplate:
        """The format of a pair; the tokenizer's own chat template takes the place of `chat`."""
        return find_template(self._template.name, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits."""
        if self.pairs is None:
            return self.corpus.fingerprint
        files = [sha256_file(Path(path).expanduser()) for path in (self.pairs, self.pairs_val) if path is not None]
        fields = [] if self.fields is None else [self.fields]
        return sha256_json([files, self._template.name, self.split, self.seed, *fields])

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, which the model's config takes over."""
        return self.tokenizer.vocab_size

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """Token ids of each split."""
        if self.pairs is not None:
            return {part: np.concatenate([each.ids for each in pairs]) for part, pairs in self.examples.items()}
        tokens = open_tokens(self.corpus, self.tokenizer, self.cache_dir)
        return tokens | {"train": self._first(tokens["train"])}

    def _first(self, tokens: np.ndarray) -> np.ndarray:
        """The first `train_tokens` of the training tokens; if documents are short, the last one is completed."""
        end, count = self.tokenizer.end_of_text, self.train_tokens
        if count is None or count >= len(tokens) or end is None or not self.corpus.short_documents:
            return tokens[:count]
        following = np.flatnonzero(tokens[count - 1 :] == end)
        return tokens[: count + following[0]] if len(following) else tokens

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """The encoded pairs of each split; empty without `pairs`."""
        if self.pairs is None:
            return {}
        train = self._encoded(self.pairs)
        if self.pairs_val is not None:
            return {"train": train, "val": self._encoded(self.pairs_val)}
        parts = split_examples(train, self.split, self.seed)
        for part, fraction, pairs in zip(PARTS, self.split, parts, strict=False):
            if not pairs:
                few = f"{self.pairs}: has too few prompts in its {len(train)} pairs for a {part} part of {fraction}"
                raise DataError(f"{few}; give more, or data.pairs_val")
        return dict(zip(PARTS, parts, strict=False))

    def _encoded(self, path: str) -> list[Example]:
        pairs = read_pairs(path, self.fields)
        return encode_pairs(self.tokenizer, pairs, self.template, self.context, self.too_long, path)

    @cached_property
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty if the corpus does not know it.

        The tokenizer must have an `<|endoftext|>`, which separates the documents.
        """
        end = self.tokenizer.end_of_text
        if self.pairs is not None or not self.corpus.has_floor or end is None:
            return {}
        log_probs = open_log_probs(self.corpus, self.tokenizer, self.cache_dir)
        lengths = self.tokenizer.byte_lengths
        return {part: Floor.of(self.tokens[part], end, lengths, nats) for part, nats in log_probs.items()}

    def example_prompt(self) -> str:
        """A prompt that suits the data: the first question of the pairs, or the first words of a text.

        Empty if the first words would be a whole document.
        """
        if self.pairs is not None:
            turns = read_pairs(self.pairs_val or self.pairs, self.fields)[0]
            return turns[-2].content if len(turns) > 1 else ""
        ids, end = self.tokens.get("val", self.tokens["train"])[:200].tolist(), self.tokenizer.end_of_text
        document = ids[: ids.index(end)] if end in ids else ids
        text = self.tokenizer.decode(document)
        if not self.corpus.separated:
            text = text.partition("\n")[2] or text  # the split may begin within a line
        words = first_words(text)
        return "" if len(document) < len(ids) and words == text.strip() else words

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer instead of one learned from the corpus."""
        self.__dict__["tokenizer"] = tokenizer

    # --- the global batch over devices and micro-batches

    def setup(self, stage: str) -> None:
        """Checks data and batch size against the trainer, and sets accumulation."""
        if stage == "fit":
            _ = self.order  # a text too short for a context is too short for a split, too
            self._part("val")
            self._set_steps()

    @cached_property
    def order(self) -> TrainingWindows | RowOrder:
        """The order of the rows of pairs, or of the windows of a text. These begin with a document if it is short."""
        if self.pairs is not None:
            return RowOrder(len(self._rows), self.batch_size, self.seed)
        tokens, end = self._part("train"), self.tokenizer.end_of_text
        if len(tokens) <= self.context:
            if len(tokens) == self.train_tokens:
                raise DataError(f"data.train_tokens: {too_short(len(tokens), self.context, 'raise it')}")
            raise DataError(f"data.corpus: {self.source}: {too_short(len(tokens), self.context)}")
        if self.corpus.short_documents and end is not None:
            rows = document_rows(document_begins(tokens, end), len(tokens), self.context)
            return DocumentWindows(len(tokens), self.context, self.batch_size, self.seed, begins=rows.begins)
        return TrainingWindows(len(tokens), self.context, self.batch_size, self.seed)

    def _set_steps(self) -> None:
        """Sets the micro-batches of an optimizer step, makes all intervals of the trainer whole steps, and counts."""
        trainer, steps = self.trainer, self.order.steps_per_epoch
        assert trainer is not None
        share, remainder = divmod(self.batch_size, trainer.world_size)
        if remainder:
            raise ConfigError(
                f"data.batch_size must be divisible by the number of devices, "
                f"got {self.batch_size} and {trainer.world_size}"
            )
        self._check_batch_size()
        micro = self.micro_batch_size or share
        if share % micro:
            raise ConfigError(
                f"data.batch_size / devices must be divisible by data.micro_batch_size, got {share} and {micro}"
            )
        if trainer.accumulate_grad_batches not in (1, share // micro):
            raise ConfigError(
                "trainer.accumulate_grad_batches follows from data.batch_size and data.micro_batch_size; leave it out"
            )
        if getattr(trainer, "overfit_batches", 0):
            raise ConfigError("trainer.overfit_batches: not supported; set data.train_tokens, as overlays/overfit does")
        trainer.accumulate_grad_batches = share // micro
        if self._counted is not trainer:  # Lightning counts micro-batches
            trainer.limit_train_batches = _micro_batches(trainer.limit_train_batches, steps, share // micro)
            interval, epoch = trainer.val_check_interval, self.steps_per_epoch
            whole_run = getattr(trainer, "check_val_every_n_epoch", None) is None
            if isinstance(interval, int) and interval > epoch and not whole_run:
                raise ConfigError(
                    f"trainer.val_check_interval must be at most the {epoch} steps of an epoch, got {interval}; "
                    "set check_val_every_n_epoch: null to count steps of the whole run"
                )
            trainer.val_check_interval = _micro_batches(interval, epoch, share // micro)
            self._counted = trainer
        self.total_steps = self._count_steps()
        self.validation_tokens = self._choose_validation_tokens()

    @property
    def row_length(self) -> int:
        """Tokens of a training sequence; pairs may all be shorter than the context."""
        if self.pairs is None:
            return self.context
        return self._rows.width or max(example.num_inputs for example in self.examples["train"])

    def _check_batch_size(self) -> None:
        """Refuses a batch that would repeat sequences, unless the text was cut short on purpose."""
        rows = self.order.num_rows if isinstance(self.order, RowOrder) else self.order.num_windows
        if self.batch_size > rows and self.train_tokens is None:
            kind = "rows of pairs" if self.pairs is not None else f"sequences of {self.context:,} tokens"
            raise ConfigError(
                f"data.batch_size: {self.batch_size:,} is more than the {rows:,} {kind} to train on; "
                "lower it, or give more data"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch of the trainer, after `setup`."""
        assert self.trainer is not None
        steps, limit = self.order.steps_per_epoch, self.trainer.limit_train_batches
        return min(steps, limit // self.trainer.accumulate_grad_batches) if isinstance(limit, int) else steps

    def _count_steps(self) -> int:
        """Optimizer steps of the whole run.

        Lightning's own estimate builds the training loader, which must wait until a checkpoint has been restored.
        """
        assert self.trainer is not None
        epochs = self.trainer.max_epochs
        ends = [self.trainer.max_steps, -1 if epochs is None else epochs * self.steps_per_epoch]
        if all(end < 0 for end in ends):
            raise ConfigError(NO_END)
        return min(end for end in ends if end >= 0)

    def _choose_validation_tokens(self) -> int | None:
        """The most tokens of a validation during training; None if it reads the whole split."""
        trainer, limit = self.trainer, self.max_val_tokens
        assert trainer is not None
        if limit is None:
            every = trainer.val_check_interval
            steps = every // trainer.accumulate_grad_batches if isinstance(every, int) else self.steps_per_epoch
            trained = min(steps, self.total_steps) * self.batch_size * self.context
            limit = max(trained // 8, VALIDATION_TOKENS)
        return limit if limit < len(self._part("val")) else None

    def _part(self, name: str) -> np.ndarray:
        if name not in self.tokens and self.pairs_val is not None:
            raise ConfigError(f"data.pairs_val leaves no {name} part; give that file as data.pairs_val instead")
        if name not in self.tokens:
            raise ConfigError(f"data.split has no {name} part: give three fractions, such as [0.8, 0.1, 0.1]")
        if name != "train" and len(self.tokens[name]) < 2:
            problem = f"{name} has {len(self.tokens[name])} tokens, needs at least 2; {self.corpus.more(name)}"
            raise DataError(f"data.corpus: {self.source}: {problem}")
        return self.tokens[name]

    # --- loaders

    def train_dataloader(self) -> DataLoader:
        """Micro-batches in the order of `TrainingWindows` or `RowOrder`, from the current step on."""
        trainer = self.trainer
        assert trainer is not None
        accumulate = int(trainer.accumulate_grad_batches)
        share, order = (accumulate, trainer.world_size, trainer.global_rank), self.order
        if isinstance(order, RowOrder):
            dataset = PairTrainingBatches(self._rows, order, *share)
        else:
            dataset = TrainingBatches(self._part("train"), order, *share)

        def position() -> int:  # in micro-batches; runs are saved after whole steps only
            return trainer.global_step * accumulate

        sampler = MicroSteps(order.steps_per_epoch * accumulate, position)
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The validation split in order, or the part of it that is read during training.

        Short documents are scored from their start.
        """
        during_training = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._evaluation("val", self.validation_tokens if during_training else None)

    def whole_validation(self) -> DataLoader:
        """The whole validation split in order, in one process."""
        size = self.micro_batch_size or self.batch_size
        return self._evaluation("val", share=(size, 1, 0))

    def test_dataloader(self) -> DataLoader:
        """The whole test split in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        """The text of `data.text` in order."""
        if self.text is None:
            raise ConfigError("data.text: missing; set the text file, --data.text FILE")
        path = Path(self.text).expanduser()
        if problem := why_unreadable(path):
            raise MissingInputError(f"data.text: {self.text}: {problem}")
        chunks = read_chunks(path, self.errors, remedy=REPAIR)
        ids = np.concatenate(list(self.tokenizer.encode_stream(chunks)) or [[]])
        if len(ids) < 2:
            raise DataError(f"data.text: {self.text}: has {len(ids)} tokens, needs at least 2")
        return self._evaluation_loader(EvaluationBatches, ids, window_rows(len(ids), self.context))

    @property
    def _pad(self) -> int:
        """The id that fills rows of pairs, which have an end-of-text token: it does not count, and no token sees it."""
        return self.tokenizer.end_of_text or 0

    @cached_property
    def _rows(self) -> PairRows:
        """The training pairs in rows."""
        examples, pad = self.examples["train"], self._pad
        return pack_rows(examples, self.context, pad) if self.packing else pad_rows(examples, pad)

    def _evaluation(
        self, part: str, max_tokens: int | None = None, share: tuple[int, int, int] | None = None
    ) -> DataLoader:
        """The loader of a split, or of evenly spaced documents or windows of it with about `max_tokens` in all."""
        tokens = self._part(part)
        limit = len(tokens) if max_tokens is None else max_tokens
        if self.pairs is not None:
            examples = self.examples[part]
            chosen = np.arange(len(examples))[evenly_spaced(len(examples), len(tokens), limit)]
            rows = pad_rows([examples[i] for i in chosen], self._pad)
            return self._evaluation_loader(PairEvaluationBatches, rows, share=share)
        floor, end = self.floors.get(part), self.tokenizer.end_of_text
        if self.corpus.short_documents and end is not None:
            begins, log_probs = document_begins(tokens, end), None if floor is None else floor.log_probs
            chosen = evenly_spaced(len(begins), len(tokens), limit)
            rows = document_rows(begins, len(tokens), self.context, log_probs, chosen)
        else:
            rows = window_rows(len(tokens), self.context)
            chosen = evenly_spaced(len(rows.begins), len(tokens), limit)
            rows = Rows(rows.begins[chosen], rows.ends[chosen])
        return self._evaluation_loader(EvaluationBatches, tokens, rows, share=share)

    def _evaluation_loader(
        self, kind: Callable[..., Dataset[Batch]], *data: Any, share: tuple[int, int, int] | None = None
    ) -> DataLoader:
        """Each process takes every world_size-th batch, without duplicates to equalize them.

        `share` has the rows in a batch, the number of processes and the rank. Default: the trainer's.
        """
        trainer = self.trainer
        assert trainer is not None
        size = self.micro_batch_size or max(1, self.batch_size // trainer.world_size)
        dataset = kind(*data, *(share or (size, trainer.world_size, trainer.global_rank)))
        return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=self.num_workers)
