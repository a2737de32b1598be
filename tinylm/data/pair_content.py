"""PairContent: prompts and responses, to train on the responses, and preferences between two of them."""

from functools import cached_property
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from tinylm.data.batches import Batch
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.content import Content, Settings
from tinylm.data.corpora import PARTS
from tinylm.data.evaluation_rows import evenly_spaced
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
from tinylm.data.preferences import encode_preferences, holds_preferences, read_preferences
from tinylm.data.template import Example, Template, TooLong, encode_pairs, find_template
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import sha256_file, sha256_json, why_unreadable
from tinylm.locate import command
from tinylm.tokenizer import Tokenizer


class PairContent(Content):
    """Prompts and responses in rows of one pair or preference, or of several pairs if they are packed.

    Args:
        pairs: the file of pairs
        val: the file of validation pairs. Default: `val.*` beside a `train.*`, else a part of `pairs`
        template: name of the format of a pair
        fields: names of prompt and response in the file
        packing: whether several pairs share a row
        too_long: treatment of pairs beyond the context: `error`, `drop` or `truncate`
        settings: options of the data module

    Raises:
        MissingInputError: if a file cannot be read.
        ConfigError: if an option is invalid.
    """

    draws_text = True  # the split of the pairs

    def __init__(
        self,
        pairs: str,
        val: str | None,
        template: str,
        fields: tuple[str, str] | None,
        packing: bool,
        too_long: TooLong,
        settings: Settings,
    ) -> None:
        self.source, self.val, self.settings = pairs, val, settings
        self._template, self.fields, self.packing = find_template(template), fields, packing
        self.too_long: TooLong = too_long
        if len(settings.split) == 1 and val is not None:
            raise ConfigError(
                "data.pairs_val: is what is validated on, and data.split is [1.0]; leave out one of the two"
            )
        first, _, suffixes = Path(pairs).name.partition(".")
        beside = Path(pairs).parent / f"val.{suffixes}"
        beside_train = first == "train" and beside.expanduser().is_file()
        if val is None and beside_train and len(settings.split) > 1:
            self.val = str(beside)
            notice(f"data.pairs_val: {beside}")
        for name, path in (("pairs", pairs), ("pairs_val", self.val)):
            if path is not None and (problem := why_unreadable(Path(path).expanduser())):
                raise MissingInputError(f"data.{name}: {path}: {problem}{_sample_data(path)}")
        if too_long not in ("error", "drop", "truncate"):
            raise ConfigError(f"data.too_long must be error, drop or truncate, got {too_long!r}")
        if settings.train_tokens is not None:
            raise ConfigError("data.train_tokens is for texts; with data.pairs, give a shorter file")

    def _find_tokenizer(self) -> Tokenizer:
        raise ConfigError(
            "data.tokenizer: use that of a trained model, by its folder; pairs are too few to learn one from"
        )

    @cached_property
    def template(self) -> Template | ChatTemplate:
        """The format of a pair; the tokenizer's own chat template replaces `chat`."""
        return find_template(self._template.name, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the pairs of the splits."""
        files = [sha256_file(Path(path).expanduser()) for path in (self.source, self.val) if path is not None]
        fields = [] if self.fields is None else [self.fields]
        return sha256_json([files, self._template.name, self.settings.split, self.settings.text_seed, *fields])

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """The encoded pairs of each split."""
        train, split = self._encoded(self.source), self.settings.split
        if self.val is not None:
            return {"train": train, "val": self._encoded(self.val)}
        parts = split_examples(train, split, self.settings.text_seed)
        for part, fraction, pairs in zip(PARTS, split, parts, strict=False):
            if not pairs:
                few = f"{self.source}: has too few prompts in its {len(train)} pairs for a {part} part of {fraction}"
                raise DataError(f"{few}; give more, or data.pairs_val")
        return dict(zip(PARTS, parts, strict=False))

    def _encoded(self, path: str) -> list[Example]:
        options = (self.template, self.settings.context, self.too_long, path)
        if self.preferences:
            return encode_preferences(self.tokenizer, read_preferences(path), *options)
        return encode_pairs(self.tokenizer, read_pairs(path, self.fields), *options)

    @cached_property
    def preferences(self) -> bool:
        """Whether the file holds preferences: prompts with a chosen and a rejected response."""
        found = self.fields is None and holds_preferences(self.source)
        if found and self.packing:
            raise ConfigError("data.packing: does not work with preferences, whose rows hold one each; leave it out")
        return found

    def _part(self, name: str) -> list[Example]:
        if name not in self.examples and self.val is not None:
            raise ConfigError(f"data.pairs_val leaves no {name} part; give that file as data.pairs_val instead")
        if name not in self.examples and name == "val":
            raise ConfigError("data.split has no val part: give two fractions, such as [0.9, 0.1], or data.pairs_val")
        if name not in self.examples:
            raise ConfigError(f"data.split has no {name} part: give three fractions, such as [0.8, 0.1, 0.1]")
        return self.examples[name]

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """Token ids of each split, one pair after the other."""
        return {part: np.concatenate([each.ids for each in pairs]) for part, pairs in self.examples.items()}

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""
        return self.val is not None or len(self.settings.split) > 1

    def num_tokens(self, part: str) -> int:
        """Tokens in a split."""
        return sum(len(example.ids) for example in self._part(part))

    @property
    def _pad(self) -> int:
        """The id that fills rows, the end-of-text token: padding does not count, and no token sees it."""
        return self.tokenizer.end_of_text or 0

    @cached_property
    def _rows(self) -> PairRows:
        """The training pairs in rows."""
        examples, pad = self._part("train"), self._pad
        return pack_rows(examples, self.settings.context, pad) if self.packing else pad_rows(examples, pad)

    @cached_property
    def order(self) -> RowOrder:
        """The order of the rows."""
        return RowOrder(len(self._rows), self.settings.batch_size, self.settings.seed)

    @property
    def num_sequences(self) -> int:
        """Rows in an epoch."""
        return self.order.num_rows

    @property
    def unit(self) -> str:
        """Training sequences, for messages."""
        return "preferences" if self.preferences else "rows of pairs"

    @property
    def sequence_length(self) -> int:
        """Tokens in the longest row; pairs may all be shorter than the context."""
        return self._rows.width or max(example.num_inputs for example in self._part("train"))

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches of rows."""
        return PairTrainingBatches(self._rows, self.order, accumulate, world_size, rank)

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of padded rows of one pair."""
        examples, total = self._part(part), self.num_tokens(part)
        limit = total if max_tokens is None else max_tokens
        chosen = np.arange(len(examples))[evenly_spaced(len(examples), total, limit)]
        rows = pad_rows([examples[i] for i in chosen], self._pad)
        return PairEvaluationBatches(rows, batch_size, world_size, rank)

    def example_prompt(self) -> str:
        """The first question."""
        path = self.val or self.source
        turns = read_preferences(path)[0].chosen if self.preferences else read_pairs(path, self.fields)[0]
        return turns[-2].content if len(turns) > 1 else ""


def _sample_data(path: str) -> str:
    """The command that writes a file of pairs that the presets name, for an error; empty for any other."""
    folder = Path(path).parent
    written = folder.name in ("questions", "summaries")
    return f"; to write it: {command('prepare', folder.name, '--out', folder)}" if written else ""
