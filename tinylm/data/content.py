"""Content, the interface of the data of a run, for training and evaluation, as data sets of batches.

text_content.py has texts, token_content.py token ids, pair_content.py pairs. `RunData` (run_data.py) divides the
batches among devices and counts the steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from tinylm.data.batches import Batch, TrainingWindows
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.corpora import DEFAULT, Reading
from tinylm.data.grammar.floor import Floor
from tinylm.data.mixture import MixtureOrder
from tinylm.data.pair_batches import RowOrder
from tinylm.data.shard_order import ShardOrder
from tinylm.data.template import Template
from tinylm.plugins import Part
from tinylm.stages import Stages
from tinylm.tokenizer import Tokenizer

DEFAULT_SPLIT = (0.9, 0.1)
WHOLE = (1.0,)


@dataclass(frozen=True)
class Settings:
    """The options of the data module that all kinds of content need, documented there.

    Attributes:
        tokenizer: `data.tokenizer`; a plug-in here is still to be trained
        context: tokens in a sequence
        batch_size: sequences in an optimizer step, by steps
        seed: seed of the order
        text_seed: seed of generated texts, and of the split of pairs
        errors: treatment of bytes that are not UTF-8
        reading: options of reading documents
    """

    tokenizer: str | Part
    context: int
    batch_size: Stages
    split: tuple[float, ...]
    seed: int
    errors: str
    train_tokens: int | None
    cache_dir: Path
    text_seed: int = 0
    reading: Reading = DEFAULT


class Content(ABC):
    """Training sequences and evaluation batches of some data, with the tokenizer.

    Everything is computed at first use, before any process group exists.

    Attributes:
        source: its name, for messages
        settings: options of the data module
        reads_files: whether files of text are decoded, as `settings.errors` says
        draws_text: whether the text of the splits depends on `settings.text_seed`
        packing: whether several pairs share a sequence
    """

    source: str
    settings: Settings
    reads_files = draws_text = packing = False
    _tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or trained."""
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        return self._tokenizer

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer instead of the one in the options."""
        self._tokenizer = tokenizer

    @abstractmethod
    def _find_tokenizer(self) -> Tokenizer:
        """The tokenizer that the options name."""

    @property
    def template(self) -> Template | ChatTemplate | None:
        """The format of a pair; None for a text."""
        return None

    @property
    def preferences(self) -> bool:
        """Whether each prompt has a chosen and a rejected response."""
        return False

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

    @property
    def unit(self) -> str:
        """Training sequences, for messages."""
        return f"sequences of {self.sequence_length:,} tokens"

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there is a validation split."""

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
