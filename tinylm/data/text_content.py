"""TextContent: a text in windows of one context; and WindowContent, its base, for token ids of any origin."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

from tinylm.data.batches import Batch, DocumentWindows, TrainingBatches, TrainingWindows
from tinylm.data.content import DEFAULT_SPLIT, WHOLE, Content, Settings
from tinylm.data.corpora import Corpus, is_generated, open_corpus
from tinylm.data.corpora.items import Items
from tinylm.data.corpora.memory import MemoryCorpus, ValidatedCorpus
from tinylm.data.evaluation_rows import (
    EvaluationBatches,
    document_begins,
    document_rows,
    evenly_spaced,
    spaced_window_rows,
)
from tinylm.data.grammar.floor import Floor
from tinylm.data.token_array import Tokens, first_position
from tinylm.data.tokens import open_log_probs, open_tokens, resolve_tokenizer
from tinylm.errors import ConfigError, DataError, TinyLMError, notice
from tinylm.tokenizer import Tokenizer


class WindowContent(Content):
    """Token ids in windows of one context; they begin with a document if documents are short.

    A training text shorter than the context is trained on in windows as long as it is.

    Attributes:
        short_documents: whether windows begin with a document, as `Corpus.short_documents` says
    """

    short_documents = False

    @cached_property
    @abstractmethod
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""

    @property
    def _separator(self) -> int | None:
        """The token that separates documents if windows begin with a document; None if they may begin anywhere."""
        return self.tokenizer.end_of_text if self.short_documents else None

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""
        return "val" in self.tokens

    def _missing(self, part: str) -> str:
        """The error message for a missing part."""
        fractions = "two fractions, such as [0.9, 0.1]" if part == "val" else "three fractions, such as [0.8, 0.1, 0.1]"
        return f"data.split has no {part} part: give {fractions}" + (", or data.val" if part == "val" else "")

    def _more(self, part: str) -> str:
        """The remedy for a part that is too short."""
        return "give a longer text" if part == "train" else "give it more of data.split"

    def _part(self, name: str) -> Tokens:
        if name not in self.tokens:
            raise ConfigError(self._missing(name))
        if len(self.tokens[name]) < 2:
            problem = f"{name} has {len(self.tokens[name])} tokens, needs at least 2"
            if name == "train" and self.settings.train_tokens == len(self.tokens[name]):
                raise DataError(f"data.train_tokens: {problem}; raise it")
            raise DataError(f"data.corpus: {self.source}: {problem}; {self._more(name)}")
        return self.tokens[name]

    def num_tokens(self, part: str) -> int:
        """Tokens in a split."""
        return len(self._part(part))

    @cached_property
    def sequence_length(self) -> int:
        """Tokens in a training window: the context, or as many as a shorter text has targets."""
        count, context = len(self._part("train")), self.settings.context
        if count <= context:
            cut = count == self.settings.train_tokens
            name = "data.train_tokens" if cut else f"data.corpus: {self.source}"
            windows = f"training on windows of {count - 1:,} of the {context:,} of max_seq_len"
            notice(f"{name}: has {count:,} tokens: {windows}")
        return min(context, count - 1)

    @cached_property
    def order(self) -> TrainingWindows:
        """The order of the windows."""
        tokens, width, end = self._part("train"), self.sequence_length, self._separator
        sizes = (len(tokens), width, self.settings.batch_size, self.settings.seed)
        if end is not None:
            rows = document_rows(document_begins(tokens, end), len(tokens), width)
            return DocumentWindows(*sizes, begins=rows.begins)
        return TrainingWindows(*sizes)

    @property
    def num_sequences(self) -> int:
        """Windows in an epoch."""
        return self.order.num_windows

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches of windows."""
        return TrainingBatches(self._part("train"), self.order, accumulate, world_size, rank)

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of adjacent windows, or of documents from their start if they are short."""
        tokens, end = self._part(part), self._separator
        if end is not None:
            limit = len(tokens) if max_tokens is None else max_tokens
            floor, begins = self.floors.get(part), document_begins(tokens, end)
            chosen = evenly_spaced(len(begins), len(tokens), limit)
            log_probs = None if floor is None else floor.log_probs
            rows = document_rows(begins, len(tokens), self.settings.context, log_probs, chosen)
        else:
            rows = spaced_window_rows(len(tokens), self.settings.context, max_tokens)
        return EvaluationBatches(tokens, rows, batch_size, world_size, rank)


Text = str | Items | Corpus  # a name or path, texts of a Python object, or the user's own corpus


def open_text(given: Text, settings: Settings, split: tuple[float, ...]) -> Corpus:
    """Opens a text in parts; the fractions are ignored if the corpus has its own parts."""
    if isinstance(given, Items):
        return MemoryCorpus(given, split, settings.reading)
    if isinstance(given, Corpus):
        return given
    options: dict[str, Any] = dict(seed=settings.text_seed, errors=settings.errors, reading=settings.reading)
    return open_corpus(given, split=split, cache_dir=settings.cache_dir, **options)


class TextContent(WindowContent):
    """A corpus, encoded by its tokenizer.

    If the default split leaves fewer than two validation tokens, the whole text is used for training.

    Args:
        source: the text
        settings: options of the data module
        val: the validation text. Default: taken from `source` by `settings.split`
    """

    def __init__(self, source: Text, settings: Settings, val: Text | None = None) -> None:
        self.settings, self._given, self._val = settings, source, val
        self.reads_files = isinstance(source, str)
        self.draws_text = any(isinstance(each, str) and is_generated(each) for each in (source, val))
        self.source = source if isinstance(source, str) else source.name

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, with the validation text if that is another."""
        return self._open(self.settings.split if self._val is None else WHOLE)

    def _open(self, split: tuple[float, ...]) -> Corpus:
        corpus = open_text(self._given, self.settings, split)
        if self._val is None:
            return corpus
        try:
            return ValidatedCorpus(corpus, open_text(self._val, self.settings, WHOLE))
        except TinyLMError as error:
            raise type(error)(str(error).replace("data.corpus:", "data.val:", 1)) from error

    @property
    def short_documents(self) -> bool:
        """Whether windows begin with a document."""
        return self.corpus.short_documents

    def _more(self, part: str) -> str:
        return super()._more(part) if part == "train" else self.corpus.more(part)

    def _find_tokenizer(self) -> Tokenizer:
        return resolve_tokenizer(self.settings.tokenizer, self.corpus, self.settings.cache_dir)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits."""
        return self.corpus.fingerprint

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""
        tokens = self._encoded(self.corpus)
        if self._val is None and lacks_validation(tokens, self.settings.split, self.source):
            tokens = self._encoded(self._open(WHOLE))
        return tokens | {"train": self._first(tokens["train"])}

    def _encoded(self, corpus: Corpus) -> dict[str, Tokens]:
        tokens = open_tokens(corpus, self.tokenizer, self.settings.cache_dir)
        wanted = ("train",) if self._val is None and self.settings.split == WHOLE else corpus.parts
        return {part: tokens[part] for part in wanted}

    def _missing(self, part: str) -> str:
        if self._val is not None:
            return f"data.val leaves no {part} part; give that text as data.val instead"
        return super()._missing(part)

    def _first(self, tokens: Tokens) -> Tokens:
        """The first `train_tokens` of the training tokens; if documents are short, the last one is completed."""
        end, count = self._separator, self.settings.train_tokens
        if count is None or count >= len(tokens) or end is None:
            return tokens[:count]
        last = first_position(tokens, end, count - 1)
        return tokens if last is None else tokens[: last + 1]

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
        known = {part: nats for part, nats in log_probs.items() if part in self.tokens}
        return {part: Floor.of(self.tokens[part], end, lengths, nats) for part, nats in known.items()}

    def example_prompt(self) -> str:
        """The first words of the text; empty if they would be a whole document."""
        ids, end = self.tokens.get("val", self.tokens["train"])[:200].tolist(), self.tokenizer.end_of_text
        document = ids[: ids.index(end)] if end is not None and end in ids else ids
        text = self.tokenizer.decode(document)
        if not self.corpus.separated:
            text = text.partition("\n")[2] or text  # the split may begin within a line
        words = first_words(text)
        return "" if len(document) < len(ids) and words == text.strip() else words


def lacks_validation(tokens: dict[str, Tokens], split: tuple[float, ...], source: str) -> bool:
    """Whether the default split leaves too little for validation; prints a notice, and all is used for training."""
    few = split == DEFAULT_SPLIT and len(tokens["val"]) < 2 <= sum(map(len, tokens.values()))
    if few:
        notice(f"data.corpus: {source}: too short for a validation part; data.val or data.split would give it one")
    return few


def first_words(text: str, words: int = 4, characters: int = 40) -> str:
    """The first words of the first line that is not blank.

    >>> first_words("\\nOnce upon a time there was Ella.")
    'Once upon a time'
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return " ".join(line[:characters].split(" ")[:words]).strip()
