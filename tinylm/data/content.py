"""Content: what a run trains on and is evaluated on, as data sets of batches. Here its interface, and a text.

pair_content.py has pairs. The data module (datamodule.py) divides the batches among devices and counts the steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch.utils.data import Dataset

from tinylm.data.batches import (
    Batch,
    DocumentWindows,
    EvaluationBatches,
    Rows,
    TrainingBatches,
    TrainingWindows,
    document_begins,
    document_rows,
    evenly_spaced,
    too_short,
    window_rows,
)
from tinylm.data.corpora import Corpus, open_corpus
from tinylm.data.grammar.floor import Floor
from tinylm.data.mixture import MixtureOrder
from tinylm.data.pair_batches import RowOrder
from tinylm.data.shard_order import ShardOrder
from tinylm.data.token_array import Tokens, first_position
from tinylm.data.tokens import open_log_probs, open_tokens, resolve_tokenizer
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """Options of the data module that contents of all kinds need, as documented there.

    Attributes:
        tokenizer: `data.tokenizer`
        context: tokens in a sequence
        batch_size: sequences in an optimizer step
        errors: treatment of bytes that are not UTF-8
    """

    tokenizer: str
    context: int
    batch_size: int
    split: tuple[float, ...]
    seed: int
    errors: str
    train_tokens: int | None
    cache_dir: Path


class Content(ABC):
    """Training sequences and evaluation batches of some data, with the tokenizer.

    Everything is computed at first use, before any process group exists.

    Attributes:
        source: its name, for messages
        settings: options of the data module
        unit: what a training sequence is called in messages
    """

    source: str
    settings: Settings
    unit: str
    _tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or trained."""
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        return self._tokenizer

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer in place of the one that the options name."""
        self._tokenizer = tokenizer

    @abstractmethod
    def _find_tokenizer(self) -> Tokenizer:
        """The tokenizer that the options name."""

    @property
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty if it is unknown."""
        return {}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each source of a mixture; empty for anything else."""
        return {}

    @property
    @abstractmethod
    def order(self) -> TrainingWindows | RowOrder | MixtureOrder | ShardOrder:
        """The order of the training sequences."""

    @property
    @abstractmethod
    def num_sequences(self) -> int:
        """Training sequences in an epoch."""

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """Tokens in the longest training sequence."""

    @abstractmethod
    def num_tokens(self, part: str) -> int:
        """Tokens in a split; raises ConfigError or DataError if there is no such split, or it is too short."""

    @abstractmethod
    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches: item i is its share of micro-batch i % accumulate of step i // accumulate."""

    @abstractmethod
    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of a split, or of evenly spaced sequences of it.

        Args:
            part: the split
            max_tokens: about how many tokens are evaluated in all; None for all of them
            batch_size: sequences in a batch
            world_size: number of processes
            rank: this process
        """

    @abstractmethod
    def example_prompt(self) -> str:
        """A prompt that suits the data; empty if there is none."""


class TextContent(Content):
    """A corpus in windows of one context; they begin with a document if documents are short."""

    def __init__(self, source: str, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.unit = f"sequences of {settings.context:,} tokens"

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus."""
        each = self.settings
        return open_corpus(self.source, split=each.split, cache_dir=each.cache_dir, seed=each.seed, errors=each.errors)

    def _find_tokenizer(self) -> Tokenizer:
        return resolve_tokenizer(self.settings.tokenizer, self.corpus, self.settings.cache_dir)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits."""
        return self.corpus.fingerprint

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""
        tokens = open_tokens(self.corpus, self.tokenizer, self.settings.cache_dir)
        return tokens | {"train": self._first(tokens["train"])}

    def _first(self, tokens: Tokens) -> Tokens:
        """The first `train_tokens` of the training tokens; if documents are short, the last one is completed."""
        end, count = self.tokenizer.end_of_text, self.settings.train_tokens
        if count is None or count >= len(tokens) or end is None or not self.corpus.short_documents:
            return tokens[:count]
        last = first_position(tokens, end, count - 1)
        return tokens if last is None else tokens[: last + 1]

    def _part(self, name: str) -> Tokens:
        if name not in self.tokens:
            raise ConfigError(f"data.split has no {name} part: give three fractions, such as [0.8, 0.1, 0.1]")
        if name != "train" and len(self.tokens[name]) < 2:
            problem = f"{name} has {len(self.tokens[name])} tokens, needs at least 2; {self.corpus.more(name)}"
            raise DataError(f"data.corpus: {self.source}: {problem}")
        return self.tokens[name]

    def num_tokens(self, part: str) -> int:
        """Tokens in a split."""
        return len(self._part(part))

    @cached_property
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty if the corpus does not know it.

        The tokenizer must have an `<|endoftext|>`, which separates the documents.
        """
        end = self.tokenizer.end_of_text
        if not self.corpus.has_floor or end is None:
            return {}
        log_probs = open_log_probs(self.corpus, self.tokenizer, self.settings.cache_dir)
        lengths = self.tokenizer.byte_lengths
        return {part: Floor.of(self.tokens[part], end, lengths, nats) for part, nats in log_probs.items()}

    @cached_property
    def order(self) -> TrainingWindows:
        """The order of the windows."""
        tokens, end, settings = self._part("train"), self.tokenizer.end_of_text, self.settings
        if len(tokens) <= settings.context:
            if len(tokens) == settings.train_tokens:
                raise DataError(f"data.train_tokens: {too_short(len(tokens), settings.context, 'raise it')}")
            raise DataError(f"data.corpus: {self.source}: {too_short(len(tokens), settings.context)}")
        sizes = (len(tokens), settings.context, settings.batch_size, settings.seed)
        if self.corpus.short_documents and end is not None:
            rows = document_rows(document_begins(tokens, end), len(tokens), settings.context)
            return DocumentWindows(*sizes, begins=rows.begins)
        return TrainingWindows(*sizes)

    @property
    def num_sequences(self) -> int:
        """Windows in an epoch."""
        return self.order.num_windows

    @property
    def sequence_length(self) -> int:
        """Tokens in a window."""
        return self.settings.context

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches of windows."""
        return TrainingBatches(self._part("train"), self.order, accumulate, world_size, rank)

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of adjacent windows, or of documents from their start if they are short."""
        tokens, end = self._part(part), self.tokenizer.end_of_text
        limit = len(tokens) if max_tokens is None else max_tokens
        if self.corpus.short_documents and end is not None:
            floor, begins = self.floors.get(part), document_begins(tokens, end)
            chosen = evenly_spaced(len(begins), len(tokens), limit)
            log_probs = None if floor is None else floor.log_probs
            rows = document_rows(begins, len(tokens), self.settings.context, log_probs, chosen)
        else:
            rows = window_rows(len(tokens), self.settings.context)
            chosen = evenly_spaced(len(rows.begins), len(tokens), limit)
            rows = Rows(rows.begins[chosen], rows.ends[chosen])
        return EvaluationBatches(tokens, rows, batch_size, world_size, rank)

    def example_prompt(self) -> str:
        """The first words of the text; empty if they would be a whole document."""
        ids, end = self.tokens.get("val", self.tokens["train"])[:200].tolist(), self.tokenizer.end_of_text
        document = ids[: ids.index(end)] if end is not None and end in ids else ids
        text = self.tokenizer.decode(document)
        if not self.corpus.separated:
            text = text.partition("\n")[2] or text  # the split may begin within a line
        words = first_words(text)
        return "" if len(document) < len(ids) and words == text.strip() else words


def first_words(text: str, words: int = 4, characters: int = 40) -> str:
    """The first words of the first line that is not blank.

    >>> first_words("\\nOnce upon a time there was Ella.")
    'Once upon a time'
    """
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return " ".join(line[:characters].split(" ")[:words]).strip()
