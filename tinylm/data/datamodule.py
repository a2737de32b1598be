"""TextDataModule: a text, token ids, or pairs of prompts and responses, as Lightning's data loaders.

`batch_size` is the global batch: the sequences of one optimizer step, over all devices and micro-batches.
`micro_batch_size` is what one device computes at once. Accumulation follows from the two, so steps, schedule and
results do not depend on the hardware.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Dataset

from tinylm.data.batches import (
    Batch,
    EvaluationBatches,
    MicroSteps,
    ShortRows,
    TrainingWindows,
    window_rows,
)
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.content import Content, Settings
from tinylm.data.corpora import REPAIR, Corpus, Reading, check_split
from tinylm.data.corpora.base import refuse_options
from tinylm.data.grammar.floor import Floor
from tinylm.data.mixture import MixtureOrder
from tinylm.data.open_content import Streaming, open_content
from tinylm.data.pair_batches import RowOrder
from tinylm.data.pair_content import PairContent
from tinylm.data.shard_order import ShardOrder
from tinylm.data.subwords import SampledRows, check_alpha
from tinylm.data.template import Template, TooLong
from tinylm.data.text_content import TextContent, WindowContent
from tinylm.data.token_array import TokenArray, Tokens
from tinylm.data.tokens import is_tokenizer_file, own_tokenizer
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import default_cache_dir, read_chunks, why_unreadable
from tinylm.plugins import DataPart, Part
from tinylm.stages import Stages
from tinylm.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    # From Python: a name or path, texts, records or token ids, or an object of a subclass of Corpus.
    CorpusLike = str | dict[str, Any] | Part | os.PathLike | Iterable[Any] | Dataset[Any] | Corpus | TokenArray
    Text = Any  # as `corpus`, but no mixture
    TokenizerLike = str | Part | dict[str, Any] | Tokenizer
else:  # on a command line and in YAML; the parser reads this
    CorpusLike, Text, TokenizerLike = DataPart | dict[str, str] | str, DataPart | str, DataPart | str

NO_END = (
    "trainer.max_steps: missing; set it or trainer.max_epochs, by which the learning rate falls "
    "(trainer.max_time may end the run earlier)"
)
BATCH_SIZE = 32
VALIDATION_TOKENS = 1 << 17  # of a validation during training, at least


def _check_options(errors: str, counts: dict[str, int], **sizes: int | None) -> None:
    if errors not in ("strict", "replace"):
        raise ConfigError(f"data.errors must be strict or replace, got {errors!r}")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name} must be at least 1, got {value}")
    for name, value in counts.items():
        if value < 0:
            raise ConfigError(f"data.{name} must not be negative, got {value}")


def seed_of_run() -> int:
    """The seed of Lightning's `seed_everything`; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def _loaded(tokenizer: str | Part | Tokenizer) -> tuple[Tokenizer | None, str | Part]:
    """The tokenizer if it is an object, a file or a plug-in that is not trained, and what `data.tokenizer` names."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer, tokenizer.kind
    if isinstance(tokenizer, Part):
        return own_tokenizer(tokenizer), tokenizer
    tokenizer = os.path.expanduser(tokenizer)  # noqa: PTH111 (a kind is no path)
    return load_tokenizer(tokenizer) if is_tokenizer_file(tokenizer) else None, tokenizer


def plug_in(value: Any) -> Any:
    """A `Part` for one that the config describes by `class_path`; any other value as it is."""
    return Part.of(value) if isinstance(value, dict) and "class_path" in value else value


def _own_text(value: Any, option: str) -> Any:
    """The corpus of a plug-in; any other value as it is."""
    if not isinstance(value, Part):
        return value
    made = value.make(field=option)
    if not isinstance(made, Corpus):
        raise ConfigError(f"{option}: {value} gives {type(made).__name__}, which is no subclass of tinylm.data.Corpus")
    return made


def _refuse(content: str, **options: Any) -> None:
    """Raises ConfigError for an option that is set and does nothing with this content."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"data.{name}: does not work with {content}; leave it out")


def data_ranks(trainer: Any) -> tuple[int, int]:
    """Number of processes that read different batches, and the number of this one.

    The devices of a tensor-parallel group read the same: the strategy says so. All others count by themselves.
    """
    share = None
    with contextlib.suppress(AttributeError, RuntimeError):  # no Trainer of Lightning's; no devices yet
        share = trainer.distributed_sampler_kwargs
    return (trainer.world_size, trainer.global_rank) if share is None else (share["num_replicas"], share["rank"])


def _micro_batches(interval: Any, steps: int, accumulate: int) -> Any:
    """An interval of the trainer in micro-batches, from one in optimizer steps or a fraction of `steps`."""
    if isinstance(interval, float) and interval != 1.0:
        interval = max(1, int(interval * steps)) if interval else 0
    return interval * accumulate if isinstance(interval, int) else interval  # a time, or None


class TextDataModule(pl.LightningDataModule):
    """Batches of tokens from a text, or from prompts and responses.

    From Python, `corpus` and `val` may also be

    - texts: a list, any iterable or a generator of strings, a column of pandas or polars;
    - records with a text in `field`: an iterable of dicts, a table, a `Dataset` of the package datasets;
    - an object of a subclass of `tinylm.data.Corpus`;
    - token ids of `tokenizer`: an array, or a PyTorch `Dataset` or an iterable whose items are the ids of a document;

    and `tokenizer` may be a `Tokenizer`. Each of the three may be a plug-in, as in the config.
    """

    def __init__(
        self,
        corpus: CorpusLike = "stories",
        tokenizer: TokenizerLike = "char",
        max_seq_len: int = 256,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        batch_schedule: dict[int, int] | None = None,
        context_schedule: dict[int, int] | None = None,
        split: tuple[float, ...] = (0.9, 0.1),
        val: Text | None = None,
        weights: dict[str, float] | None = None,
        field: str = "text",
        separator: str | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        deduplicate: bool = False,
        seed: int | None = None,
        text_seed: int = 0,
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
        streaming: bool = False,
        shard_timeout: float | None = None,
        max_cache_gb: float | None = None,
        subword_alpha: float | None = None,
    ) -> None:
        """Creates the data module.

        Args:
            corpus: stories (stories:20000 for more), names, tinyshakespeare, tinystories, a file, folder, glob or URL,
                lines:FILE, *.grammar.yaml, {a: FILE, ...}, or a plug-in
            tokenizer: char, byte, word, bpe:SIZE, unigram:SIZE, wordpiece:SIZE, learned; a file, folder, or plug-in
            max_seq_len: Tokens per sequence; in a training run, that of the model
            batch_size: Sequences per optimizer step, over all devices
            micro_batch_size: Sequences per device at once. Default: all of its share
            batch_schedule: Smaller batches at first: {200: 8} before step 200
            context_schedule: Shorter sequences at first: {200: 32} before step 200
            split: Fractions of train, val, test; [1.0]: no val
            val: Validation text, given as a corpus is
            weights: Shares of a mixture: {a: 0.7, b: 0.3}. Default: by size
            field: Field or column of a record that is its text; a.b for nested ones
            separator: Text between the documents of a file. Default: <|endoftext|> if it is there
            include: Files to take from a folder, as ['*.md']
            exclude: Files to leave out, as ['drafts/*']
            deduplicate: Keep only the first of equal documents
            seed: Seed of the order of the data. Default: seed_everything
            text_seed: Seed of generated texts and of the split of pairs
            errors: Invalid UTF-8: strict (an error) or replace
            num_workers: Processes that load batches; 0 = this one
            train_tokens: Train on the first N tokens only
            cache_dir: Cache folder. Default: $TINYLM_CACHE or ~/.cache/tinylm
            max_val_tokens: Most tokens of a validation during training
            text: predict: the text file
            pairs: Pairs or preferences: a .jsonl, .json or .csv file
            pairs_val: Validation pairs. Default: val.* beside train.*, by split
            template: Format of a pair: pairs (prompt, response) or chat (with roles; the model's own if it has one)
            fields: Names of prompt and response, as [question,answer]
            packing: Pack several pairs into a sequence; needs document_mask
            too_long: Pairs beyond the context: error, drop, truncate
            streaming: Shards one by one, as they appear, or by URL
            shard_timeout: Seconds to wait for a shard. Default: 600
            max_cache_gb: Size of the cache of a URL. Default: 50
            subword_alpha: Draw the tokens anew each time: BPE dropout's probability, or the alpha of unigram
        """
        super().__init__()
        sizes: dict[str, int | None] = dict(max_seq_len=max_seq_len, batch_size=batch_size)
        sizes |= dict(micro_batch_size=micro_batch_size, train_tokens=train_tokens, max_val_tokens=max_val_tokens)
        seed = seed_of_run() if seed is None else seed
        _check_options(errors, dict(seed=seed, text_seed=text_seed, num_workers=num_workers), **sizes)
        given = dict(corpus=plug_in(corpus), val=plug_in(val), tokenizer=plug_in(tokenizer))
        self.plugins = [each for each in given.values() if isinstance(each, Part)]
        corpus, val = (_own_text(given[name], f"data.{name}") for name in ("corpus", "val"))
        saved, tokenizer = _loaded(given["tokenizer"])
        # The byte tokenizer accepts any bytes: invalid UTF-8 is represented by lone surrogates.
        takes_bytes = "byte" in (tokenizer, saved and saved.kind)
        self.errors = "surrogateescape" if takes_bytes and errors == "strict" else errors
        self.context, self.batch_size, self.micro_batch_size = max_seq_len, batch_size, micro_batch_size
        self.batch_sizes = Stages.of("data.batch_schedule", batch_schedule, batch_size)
        self.contexts = Stages.of("data.context_schedule", context_schedule, max_seq_len)
        self.num_workers, self.max_val_tokens, self.text, self.pairs = num_workers, max_val_tokens, text, pairs
        self.subword_alpha = subword_alpha
        settings = Settings(
            tokenizer=tokenizer,
            context=max_seq_len,
            batch_size=self.batch_sizes,
            split=check_split(split),
            seed=seed,
            text_seed=text_seed,
            errors=self.errors,
            train_tokens=train_tokens,
            cache_dir=Path(cache_dir).expanduser() if cache_dir else default_cache_dir(),
            reading=Reading(field, separator, tuple(include), tuple(exclude), deduplicate),
        )
        stream = Streaming.of(streaming, shard_timeout, max_cache_gb)
        self.content: Content
        if pairs is not None:
            refuse_options(settings.reading, "data.pairs")
            _refuse("data.pairs", weights=weights, streaming=stream, context_schedule=context_schedule)
            _refuse("data.pairs", subword_alpha=subword_alpha)
            if val is not None:
                raise ConfigError("data.val: is for data.corpus; give the validation pairs as data.pairs_val")
            self.content = PairContent(pairs, pairs_val, template, fields, packing, too_long, settings)
        else:
            if fields is not None:
                raise ConfigError("data.fields: is for data.pairs; leave it out")
            if stream is not None and num_workers:
                raise ConfigError("data.num_workers: with data.streaming this process reads the batches; leave it out")
            self.content = open_content(corpus, val, settings, saved, weights, stream)
            if errors != "strict" and text is None and not self.content.reads_files:
                raise ConfigError(f"data.errors: is for files of text, not for {self.source}; leave it out")
        if text_seed and not self.content.draws_text:
            raise ConfigError(f"data.text_seed: is for generated texts and pairs, not for {self.source}; leave it out")
        if saved is not None:
            self.use_tokenizer(saved)
        self._counted: pl.Trainer | None = None  # its intervals are in micro-batches
        self.total_steps = 0  # of a run of the trainer, after `setup`
        self._epoch = 0  # optimizer steps in an epoch, after `setup`: a resume changes trainer.max_steps for a while
        self.validates = True  # in a run of the trainer
        self._set_aside: dict[str, Any] = {}  # the trainer's settings of validations, while there are none
        self.validation_tokens: int | None = None  # the most of a validation during training; None: the whole split

    @property
    def source(self) -> str:
        """The name of the content, for messages."""
        return self.content.source

    # --- delegated to the content

    @property
    def corpus(self) -> Corpus:
        """The corpus; raises ConfigError for pairs and token ids."""
        if not isinstance(self.content, TextContent):
            raise ConfigError(f"{self.source} has no corpus of text")
        return self.content.corpus

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or learned from the corpus."""
        return self.content.tokenizer

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer instead of one learned from the corpus."""
        self.content.use_tokenizer(tokenizer)

    @property
    def template(self) -> Template | ChatTemplate | None:
        """The format of a pair; None for a text."""
        return self.content.template if isinstance(self.content, PairContent) else None

    @property
    def preferences(self) -> bool:
        """Whether each prompt has a chosen and a rejected response."""
        return isinstance(self.content, PairContent) and self.content.preferences

    @property
    def packing(self) -> bool:
        """Whether several pairs share a sequence."""
        return isinstance(self.content, PairContent) and self.content.packing

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits."""
        return self.content.fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each source of a mixture; empty for anything else."""
        return self.content.fingerprints

    @property
    def text_seed(self) -> int:
        """The seed of the text."""
        return self.content.settings.text_seed

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, which the model's config takes over."""
        return self.tokenizer.vocab_size

    @property
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""
        assert isinstance(self.content, WindowContent | PairContent)
        return dict(self.content.tokens)

    @property
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty if it is unknown."""
        return self.content.floors

    @property
    def step_size(self) -> str:
        """Describes the training data of a step, such as `8 x 128 tokens`."""
        length = self.content.sequence_length
        row = "pairs" if self.pairs and not self.packing else f"x {length} tokens"
        rows = f"{self.batch_sizes if self.batch_size else 'unknown'} {row}"
        return f"{rows}, in rows of {replace(self.contexts, final=length)}" if self.contexts.before else rows

    def example_prompt(self) -> str:
        """A prompt that suits the data; empty if there is none."""
        return self.content.example_prompt()

    @property
    def order(self) -> TrainingWindows | RowOrder | MixtureOrder | ShardOrder:
        """The order of the training sequences."""
        return self.content.order

    # --- the global batch over devices and micro-batches

    def setup(self, stage: str) -> None:
        """Checks data and batch size against the trainer, and sets accumulation.

        Raises:
            ConfigError: if the two do not fit together, or there is nothing to evaluate.
            DataError: if the text is too short.
        """
        if stage == "fit":
            _ = self.order  # a text too short to train on is too short for a split, too
            if self.subword_alpha is not None:
                check_alpha(self.tokenizer, self.subword_alpha)
            self._set_validation()
            self._set_steps()
            return
        if stage in ("validate", "test"):
            self.content.num_tokens({"validate": "val", "test": "test"}[stage])
            option = {"validate": "limit_val_batches", "test": "limit_test_batches"}[stage]
            if getattr(self.trainer, option, 1.0) == 0:
                raise ConfigError(f"trainer.{option}: is 0, which evaluates nothing; set it to 1.0")

    def teardown(self, stage: str) -> None:
        """Gives the trainer its validations back, for other data."""
        for name, value in self._set_aside.items():
            setattr(self.trainer, name, value)
        self._set_aside = {}

    def _set_validation(self) -> None:
        """Switches the validations of the trainer off if there is nothing to validate on, and says so."""
        trainer = self.trainer
        assert trainer is not None
        validates = getattr(trainer, "limit_val_batches", 1.0) != 0
        if self.content.has_validation:
            if validates:
                self.content.num_tokens("val")
            reason = "trainer.limit_val_batches is 0"
        else:
            if self.max_val_tokens is not None:
                raise ConfigError(
                    "data.max_val_tokens: there is no validation; leave it out, or set data.split or data.val"
                )
            reason = "all is trained on"
        self.validates = validates and self.content.has_validation
        if self.validates:
            return
        if self._counted is not trainer:
            notice(f"no validation ({reason}): the last checkpoint is the model")
        for name, value in (("limit_val_batches", 0), ("val_check_interval", 1.0)):
            if hasattr(trainer, name):
                self._set_aside.setdefault(name, getattr(trainer, name))
            setattr(trainer, name, value)

    def _set_steps(self) -> None:
        """Sets the micro-batches of an optimizer step, makes all intervals of the trainer whole steps, and counts."""
        trainer, self._epoch = self.trainer, self._steps_of_order
        assert trainer is not None
        accumulate = self._micro_batches_of_step()
        if getattr(trainer, "overfit_batches", 0):
            raise ConfigError("trainer.overfit_batches: not supported; set data.train_tokens, as overlays/overfit does")
        trainer.accumulate_grad_batches = accumulate
        if self._counted is not trainer:  # Lightning counts micro-batches
            trainer.limit_train_batches = _micro_batches(trainer.limit_train_batches, self._epoch, accumulate)
            interval, epoch = trainer.val_check_interval, self.steps_per_epoch
            whole_run = getattr(trainer, "check_val_every_n_epoch", None) is None
            if isinstance(interval, int) and interval > epoch and not whole_run:
                raise ConfigError(
                    f"trainer.val_check_interval must be at most the {epoch} steps of an epoch, got {interval}; "
                    "set check_val_every_n_epoch: null to count steps of the whole run"
                )
            trainer.val_check_interval = _micro_batches(interval, epoch, accumulate)
            self._counted = trainer
        self.total_steps = self._count_steps()
        self.validation_tokens = self._choose_validation_tokens()

    def _micro_batches_of_step(self) -> int:
        """Micro-batches of a device in an optimizer step, which follow from the global batch."""
        trainer = self.trainer
        assert trainer is not None
        share, remainder = divmod(self.batch_size, readers := data_ranks(trainer)[0])
        if remainder:
            raise ConfigError(
                f"data.batch_size must be divisible by the number of devices, got {self.batch_size} and {readers}"
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
        self._check_stages(readers * (share // micro))
        return share // micro

    def _check_stages(self, micro_batches: int) -> None:
        """Refuses stages that cannot be divided: the micro-batches of a step, on all devices, are always as many."""
        for size in self.batch_sizes.values:
            if size % micro_batches:
                raise ConfigError(
                    f"data.batch_schedule: {size} must be divisible by the {micro_batches} micro-batches of a step on "
                    "all devices (data.batch_size / data.micro_batch_size)"
                )
        length = self.content.sequence_length if self.contexts.before else 1
        for context in self.contexts.values[:-1]:
            if length % context:
                raise ConfigError(f"data.context_schedule: {context} must divide the {length} tokens of a sequence")

    def _check_batch_size(self) -> None:
        """Refuses a batch that repeats sequences, unless it is of the default size or there is only one.

        A text that was cut short on purpose may be repeated.
        """
        sequences, settings = self.content.num_sequences, self.content.settings
        if self.batch_size <= sequences or settings.train_tokens is not None:
            return
        unit = self.content.unit if sequences != 1 else self.content.unit.replace("s of", " of", 1)
        repeats = f"data.batch_size: {self.batch_size:,} is more than the {sequences:,} {unit} to train on"
        if self.batch_size > BATCH_SIZE and sequences > 1:
            raise ConfigError(f"{repeats}; lower it, or give more data")
        if self._counted is not self.trainer:
            notice(f"{repeats}: a step repeats {'it' if sequences == 1 else 'them'}")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch of the trainer, after `setup`."""
        assert self.trainer is not None
        limit, accumulate = self.trainer.limit_train_batches, self.trainer.accumulate_grad_batches
        return min(self._epoch, limit // accumulate) if isinstance(limit, int) else self._epoch

    @property
    def _steps_of_order(self) -> int:
        """Optimizer steps in an epoch; of the whole run if epochs vary, with `streaming` or batches that grow."""
        trainer = self.trainer
        assert trainer is not None
        option = "data.streaming" if isinstance(self.order, ShardOrder) else "data.batch_schedule"
        if not isinstance(self.order, ShardOrder) and not self.batch_sizes.before:
            return self.order.steps_per_epoch
        if trainer.max_steps < 0:
            raise ConfigError(f"trainer.max_steps: missing; with {option} an epoch has no fixed number of steps")
        if trainer.max_epochs not in (None, -1):
            raise ConfigError(f"trainer.max_epochs: does not work with {option}; set trainer.max_steps alone")
        return trainer.max_steps

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
        """The most tokens of a validation during training; None if it reads the whole split, or there is none."""
        trainer, limit = self.trainer, self.max_val_tokens
        assert trainer is not None
        if not self.validates:
            return None
        if limit is None:
            every = trainer.val_check_interval
            steps = every // trainer.accumulate_grad_batches if isinstance(every, int) else self.steps_per_epoch
            trained = min(steps, self.total_steps) * self.batch_size * self.content.sequence_length
            limit = max(trained // 8, VALIDATION_TOKENS)
        return limit if limit < self.content.num_tokens("val") else None

    # --- loaders

    def train_dataloader(self) -> DataLoader:
        """Micro-batches in the order of `TrainingWindows` or `RowOrder`, from the current step on."""
        trainer = self.trainer
        assert trainer is not None
        accumulate = int(trainer.accumulate_grad_batches)
        dataset = self.content.training(accumulate, *data_ranks(trainer))
        if self.contexts.before:
            dataset = ShortRows(dataset, self.contexts, accumulate)
        if self.subword_alpha is not None:
            seed = self.content.settings.seed
            dataset = SampledRows(dataset, self.tokenizer, self.subword_alpha, seed, accumulate, data_ranks(trainer)[1])

        def position() -> int:  # in micro-batches; runs are saved after whole steps only
            return trainer.global_step * accumulate

        sampler = MicroSteps(self._epoch * accumulate, position)
        return DataLoader(
            dataset, sampler=sampler, batch_size=None, num_workers=self.num_workers, pin_memory=self._pinned
        )

    def val_dataloader(self) -> DataLoader:
        """The validation split in order, or the part of it that is read during training.

        Short documents are scored from their start.
        """
        during_training = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._evaluation("val", self.validation_tokens if during_training else None)

    def whole_validation(self) -> DataLoader:
        """The whole validation split in order, in one process."""
        return self._evaluation("val", share=(self.micro_batch_size or self.batch_size, 1, 0))

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
        return self._loader(EvaluationBatches(ids, window_rows(len(ids), self.context), *self._share()))

    def _evaluation(
        self, part: str, max_tokens: int | None = None, share: tuple[int, int, int] | None = None
    ) -> DataLoader:
        """The loader of a split, or of about `max_tokens` of it; `share` as in `_share`, by default that."""
        self.content.num_tokens(part)  # refuses a split that does not exist
        return self._loader(self.content.evaluation(part, max_tokens, *(share or self._share())))

    def _share(self) -> tuple[int, int, int]:
        """Sequences in an evaluation's batch, and `data_ranks`.

        Of n processes each takes every n-th batch, without duplicates to equalize them.
        """
        assert self.trainer is not None
        count, rank = data_ranks(self.trainer)
        return self.micro_batch_size or max(1, self.batch_size // count), count, rank

    def _loader(self, dataset: Dataset[Batch]) -> DataLoader:
        return DataLoader(
            dataset, batch_size=None, shuffle=False, num_workers=self.num_workers, pin_memory=self._pinned
        )

    @property
    def _pinned(self) -> bool:
        """Whether batches lie in pinned memory, from which Lightning sends them to a GPU without waiting for it."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and device.type == "cuda"
