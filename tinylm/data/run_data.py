"""RunData: the LightningDataModule of any content. It divides the batches among devices and counts the steps.

`batch_size` is the global batch: the sequences of one optimizer step, over all devices and micro-batches.
`micro_batch_size` is what one device computes at once. Accumulation follows from the two, so steps, schedule and
results do not depend on the hardware.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from tinylm.data.batches import Batch, MicroSteps, ShortRows, TrainingWindows
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.content import Content
from tinylm.data.division import check_batch_stages, check_context_stages, check_repeats, data_ranks, divide_batch
from tinylm.data.grammar.floor import Floor
from tinylm.data.mixture import MixtureOrder
from tinylm.data.pair_batches import RowOrder
from tinylm.data.shard_order import ShardOrder
from tinylm.data.subwords import SampledRows, check_alpha
from tinylm.data.template import Template
from tinylm.data.trainer_settings import TrainerSettings, fixed_steps, steps_of_run, steps_per_epoch
from tinylm.errors import ConfigError, notice
from tinylm.plugins import Part
from tinylm.stages import Stages
from tinylm.tokenizer import Tokenizer

VALIDATION_TOKENS = 1 << 17  # of a validation during training, at least


class StepLoader(DataLoader):
    """A loader that resumes anywhere without a state of its own: the step, which Lightning restores, is its position.

    Lightning warns of loaders without these two methods.
    """

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the state."""


class RunData(pl.LightningDataModule):
    """Batches of a content for the steps of a run.

    Attributes:
        content: the data for training and evaluation
        plugins: the user's classes that provide it
        batch_sizes: sequences of an optimizer step over all devices, by stages
        contexts: tokens of a training sequence, by stages
        micro_batch_size: sequences that a device computes at once. None: all of its share
        max_val_tokens: the most tokens of a validation during training, as set by the user
        validates: whether the run has validations, after `setup`
        validation_tokens: the most tokens of a validation during training, after `setup`. None: the whole split
        total_steps: optimizer steps of the run, after `setup`
    """

    def __init__(
        self,
        content: Content,
        batch_sizes: Stages,
        contexts: Stages,
        *,
        plugins: Sequence[Part] = (),
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        max_val_tokens: int | None = None,
        subword_alpha: float | None = None,
    ) -> None:
        """Creates the data module; the options are those of `TextDataModule`."""
        super().__init__()
        self.content, self.plugins = content, [*plugins]
        self.batch_sizes, self.contexts = batch_sizes, contexts
        self.micro_batch_size, self.num_workers = micro_batch_size, num_workers
        self.max_val_tokens, self.subword_alpha = max_val_tokens, subword_alpha
        self.validates, self.total_steps = True, 0
        self.validation_tokens: int | None = None
        self._settings = TrainerSettings()
        self._epoch = 0  # steps in an epoch, after `setup`: a resume changes trainer.max_steps temporarily

    # --- the content

    @property
    def source(self) -> str:
        """The name of the content, for messages."""
        return self.content.source

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or learned from the corpus."""
        return self.content.tokenizer

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer instead of one learned from the corpus."""
        self.content.use_tokenizer(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, which the model's config takes over."""
        return self.tokenizer.vocab_size

    @property
    def template(self) -> Template | ChatTemplate | None:
        """The format of a pair; None for a text."""
        return self.content.template

    @property
    def preferences(self) -> bool:
        """Whether each prompt has a chosen and a rejected response."""
        return self.content.preferences

    @property
    def packing(self) -> bool:
        """Whether several pairs share a sequence."""
        return self.content.packing

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
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty if it is unknown."""
        return self.content.floors

    @property
    def order(self) -> TrainingWindows | RowOrder | MixtureOrder | ShardOrder:
        """The order of the training sequences."""
        return self.content.order

    def example_prompt(self) -> str:
        """A prompt that suits the data; empty if there is none."""
        return self.content.example_prompt()

    # --- the steps of a run

    @property
    def batch_size(self) -> int:
        """Sequences of an optimizer step over all devices, after the last stage. Set in the constructor only."""
        return self.batch_sizes.final

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        raise ConfigError(
            "data.batch_size: is fixed once the data module is created, since the order of the data follows from it; "
            "Tuner.scale_batch_size cannot change it: data.micro_batch_size decides what a device holds at once"
        )

    @property
    def step_size(self) -> str:
        """Describes the training data of a step, such as `8 x 128 tokens`."""
        length = self.content.sequence_length
        row = "pairs" if self.template is not None and not self.packing else f"x {length} tokens"
        rows = f"{self.batch_sizes if self.batch_size else 'unknown'} {row}"
        return f"{rows}, in rows of {replace(self.contexts, final=length)}" if self.contexts.before else rows

    def setup(self, stage: str) -> None:
        """Checks data and batch size against the trainer, sets accumulation, and counts the steps.

        Without a trainer, the loaders give the batches of one device, from the first step on, to be looked at.

        Raises:
            ConfigError: if the two do not match, or there is nothing to evaluate.
            DataError: if the text is too short.
        """
        if stage == "fit":
            _ = self.order  # a text that is too short for training is too short for a split, too
            if self.subword_alpha is not None:
                check_alpha(self.tokenizer, self.subword_alpha)
            if self.trainer is None:
                return
            self._set_validation()
            self._epoch = self._steps_of_order
            self._settings.convert(self.trainer, self._epoch, self._micro_batches_of_step())
            self.total_steps = steps_of_run(self.trainer, self.steps_per_epoch)
            self.validation_tokens = self._choose_validation_tokens()
        elif stage in ("validate", "test"):
            self.content.num_tokens({"validate": "val", "test": "test"}[stage])
            option = {"validate": "limit_val_batches", "test": "limit_test_batches"}[stage]
            if getattr(self.trainer, option, 1.0) == 0:
                raise ConfigError(f"trainer.{option}: is 0, which evaluates nothing; set it to 1.0")

    def teardown(self, stage: str) -> None:
        """Gives the trainer its validations back, for other data."""
        self._settings.restore(self.trainer)

    def _set_validation(self) -> None:
        """Switches the validations of the trainer off if there is no validation data, with a notice."""
        wanted = getattr(self.trainer, "limit_val_batches", 1.0) != 0
        self.validates = wanted and self.content.has_validation
        if self.validates:
            self.content.num_tokens("val")  # refuses a text that is too short
            return
        if not self.content.has_validation and self.max_val_tokens is not None:
            raise ConfigError(
                "data.max_val_tokens: there is no validation; leave it out, or set data.split or data.val"
            )
        reason = "trainer.limit_val_batches is 0" if self.content.has_validation else "all is trained on"
        if self._settings.is_new(self.trainer):
            notice(f"no validation ({reason}): the last checkpoint is the model")
        self._settings.without_validation(self.trainer)

    def _micro_batches_of_step(self) -> int:
        """Micro-batches of a device in an optimizer step, which follow from the global batch."""
        micro_batches = divide_batch(self.trainer, self.batch_size, self.micro_batch_size)
        check_repeats(self.batch_size, self.content, announce=self._settings.is_new(self.trainer))
        check_batch_stages(self.batch_sizes, data_ranks(self.trainer)[0] * micro_batches)
        if self.contexts.before:
            check_context_stages(self.contexts, self.content.sequence_length)
        return micro_batches

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch of the trainer, after `setup`."""
        return steps_per_epoch(self.trainer, self._epoch)

    @property
    def _steps_of_order(self) -> int:
        """Optimizer steps in an epoch, or in the whole run if epochs vary (with `streaming` or growing batches)."""
        if isinstance(self.order, ShardOrder):
            return fixed_steps(self.trainer, "data.streaming")
        if self.batch_sizes.before:
            return fixed_steps(self.trainer, "data.batch_schedule")
        return self.order.steps_per_epoch

    def _choose_validation_tokens(self) -> int | None:
        """The most tokens of a validation during training; None if it reads the whole split, or there is none."""
        trainer, limit = self.trainer, self.max_val_tokens
        assert trainer is not None
        if not self.validates:
            return None
        if limit is None:
            steps = min(self.steps_between_validations, self.total_steps)
            trained = steps * self.batch_size * self.content.sequence_length
            limit = max(trained // 8, VALIDATION_TOKENS)
        return limit if limit < self.content.num_tokens("val") else None

    @property
    def steps_between_validations(self) -> int:
        """Optimizer steps from one validation to the next, after `setup`."""
        trainer: Any = self.trainer
        every = trainer.val_check_interval  # in micro-batches by now, or the whole epoch
        return every // trainer.accumulate_grad_batches if isinstance(every, int) else self.steps_per_epoch

    @property
    def tokens_of_validation(self) -> int:
        """Tokens that a validation reads, after `setup`; 0 if there is none."""
        return (self.validation_tokens or self.content.num_tokens("val")) if self.validates else 0

    # --- loaders

    def train_dataloader(self) -> DataLoader:
        """Micro-batches in the order of the content, from the current step on."""
        trainer = self.trainer
        if trainer is None:
            accumulate, epoch = self._micro_batches_of_step(), self._steps_of_order
        else:
            accumulate, epoch = int(trainer.accumulate_grad_batches), self._epoch
        dataset = self.content.training(accumulate, *data_ranks(trainer))
        if self.contexts.before:
            dataset = ShortRows(dataset, self.contexts, accumulate)
        if self.subword_alpha is not None:
            seed = self.content.settings.seed
            dataset = SampledRows(dataset, self.tokenizer, self.subword_alpha, seed, accumulate, data_ranks(trainer)[1])

        def position() -> int:  # in micro-batches; runs are saved after whole steps only
            return 0 if trainer is None else trainer.global_step * accumulate

        return self._loader(dataset, sampler=MicroSteps(epoch * accumulate, position))

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

    def _evaluation(
        self, part: str, max_tokens: int | None = None, share: tuple[int, int, int] | None = None
    ) -> DataLoader:
        """The loader of a split, or of about `max_tokens` of it; `share` defaults to `_share`."""
        self.content.num_tokens(part)  # refuses a split that does not exist
        return self._loader(self.content.evaluation(part, max_tokens, *(share or self._share())))

    def _share(self) -> tuple[int, int, int]:
        """Sequences in an evaluation's batch, and `data_ranks`.

        Each of n processes takes every n-th batch; no batch is duplicated to make the shares equal.
        """
        count, rank = data_ranks(self.trainer)
        return self.micro_batch_size or max(1, self.batch_size // count), count, rank

    def _loader(self, dataset: Dataset[Batch], **options: Any) -> DataLoader:
        """Batches in pinned memory for a GPU: Lightning sends them there without waiting."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        pinned = device is not None and device.type == "cuda"
        return StepLoader(dataset, batch_size=None, num_workers=self.num_workers, pin_memory=pinned, **options)


def data_of(trainer: Any) -> RunData:
    """The data module of a Trainer."""
    return trainer.datamodule
