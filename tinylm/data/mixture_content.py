"""MixtureContent: several corpora, each with its share of the training tokens."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from tinylm.data.batches import Batch, too_short, windows_at, windows_batch
from tinylm.data.content import Content, Settings
from tinylm.data.corpora import Corpus
from tinylm.data.grammar.floor import Floor
from tinylm.data.mixture import MixtureOrder, source_seed
from tinylm.data.pretokenized import find_pretokenized
from tinylm.data.shard_content import ShardContent
from tinylm.data.text_content import TextContent
from tinylm.data.token_array import Tokens
from tinylm.data.tokens import resolve_tokenizer
from tinylm.errors import ConfigError, DataError, did_you_mean
from tinylm.files import sha256_json
from tinylm.tokenizer import Tokenizer


def _content(source: str, settings: Settings) -> TextContent | ShardContent:
    """A source of a mixture: a text, or token ids."""
    found = find_pretokenized(source)
    return TextContent(source, settings) if found is None else ShardContent(found, settings)


class MixtureContent(Content):
    """Several corpora in windows of one context, encoded by one tokenizer.

    Args:
        sources: name of each source -> what `data.corpus` would be for it alone
        weights: name of each source -> its share of the training tokens, relative to the others. None: in
            proportion to its number of tokens
        settings: options of the data module

    Raises:
        ConfigError: if a name or a weight is invalid.
    """

    def __init__(self, sources: Mapping[str, str], weights: Mapping[str, float] | None, settings: Settings) -> None:
        sources = {str(name): source for name, source in sources.items()}  # YAML may read 1 as a number
        weights = None if weights is None else {str(name): weight for name, weight in weights.items()}
        check_sources(sources, weights)
        if settings.train_tokens is not None:
            raise ConfigError("data.train_tokens: is for one corpus; of a mixture, make the sources shorter")
        self.names = sorted(sources)
        self.source = " + ".join(self.names)
        self.settings, self._weights = settings, weights
        self.contents = {name: _content(sources[name], settings) for name in self.names}
        self.reads_files = any(content.reads_files for content in self.contents.values())
        self.draws_text = any(content.draws_text for content in self.contents.values())

    def _find_tokenizer(self) -> Tokenizer:
        for content in self.contents.values():
            if isinstance(content, ShardContent):  # its tokenizer encodes the other sources, or is compared with theirs
                return content.tokenizer
        texts = [content for content in self.contents.values() if isinstance(content, TextContent)]
        corpora = JoinedCorpus(self.source, [text.corpus for text in texts])
        return resolve_tokenizer(self.settings.tokenizer, corpora, self.settings.cache_dir)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses this tokenizer instead of the one in the options."""
        super().use_tokenizer(tokenizer)
        for content in self.contents.values():
            content.use_tokenizer(tokenizer)

    @cached_property
    def _texts(self) -> dict[str, TextContent | ShardContent]:
        """The sources, with the common tokenizer."""
        self.use_tokenizer(self.tokenizer)
        return self.contents

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the text of the splits of all sources."""
        return sha256_json(self.fingerprints)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each source."""
        return {name: content.fingerprint for name, content in self.contents.items()}

    @property
    def weights(self) -> dict[str, float]:
        """The share of each source among the training tokens; their sum is 1."""
        tokens = {name: text.num_tokens("train") for name, text in self._texts.items()}
        weights = tokens if self._weights is None else self._weights
        return {name: weights[name] / math.fsum(weights.values()) for name in self.names}

    @cached_property
    def order(self) -> MixtureOrder:
        """The order of the windows of all sources."""
        settings, largest = self.settings, self.settings.batch_size.final
        for name, text in self._texts.items():
            if (count := text.num_tokens("train")) <= settings.context:
                raise DataError(f"data.corpus.{name}: {text.source}: {too_short(count, settings.context)}")
        orders = {
            name: replace(text.order, seed=source_seed(settings.seed, name)) for name, text in self._texts.items()
        }
        for name, weight in self.weights.items():
            share, windows = largest * weight, orders[name].num_windows
            if share > windows:
                raise ConfigError(
                    f"data.batch_size: {largest:,} takes {share:,.0f} {self.unit} of {name}, which has "
                    f"{windows:,}; lower it or data.weights.{name}, or give more data"
                )
        return MixtureOrder(orders, self.weights, settings.batch_size)

    @property
    def num_sequences(self) -> int:
        """Windows of all sources."""
        return self.order.num_windows

    @property
    def sequence_length(self) -> int:
        """Tokens in a window."""
        return self.settings.context

    @property
    def has_validation(self) -> bool:
        """Whether a source has a validation split."""
        return any(text.has_validation for text in self._texts.values())

    def _with(self, part: str) -> dict[str, TextContent | ShardContent]:
        """The sources that have a split, or all if none has."""
        return {name: text for name, text in self._texts.items() if part in text.tokens} or self._texts

    def num_tokens(self, part: str) -> int:
        """Tokens in a split of all sources that have it."""
        return sum(text.num_tokens(part) for text in self._with(part).values())

    @cached_property
    def floors(self) -> dict[str, Floor]:
        """The loss floor of each evaluated split; empty unless all sources know theirs."""
        floors = [text.floors for text in self._texts.values()]
        parts = set.intersection(*map(set, floors))
        return {part: Floor.joined([each[part] for each in floors]) for part in sorted(parts)}

    def training(self, accumulate: int, world_size: int, rank: int) -> Dataset[Batch]:
        """A process's micro-batches of windows of all sources."""
        tokens = {name: text.tokens["train"] for name, text in self._texts.items()}
        return MixtureBatches(tokens, self.order, accumulate, world_size, rank)

    def evaluation(
        self, part: str, max_tokens: int | None, batch_size: int, world_size: int, rank: int
    ) -> Dataset[Batch]:
        """A process's batches of one source after the other. A limited evaluation reads a share of each."""
        total, batches = self.num_tokens(part), []
        for name, text in self._with(part).items():
            limit = None if max_tokens is None else max(1, max_tokens * text.num_tokens(part) // total)
            batches.append(SourceBatches(text.evaluation(part, limit, batch_size, world_size, rank), name))
        return ConcatDataset(batches)

    def example_prompt(self) -> str:
        """The first words of the source with the largest weight that has some."""
        names = sorted(self.names, key=lambda name: -self.weights[name])
        return next(filter(None, (self._texts[name].example_prompt() for name in names)), "")


def check_sources(sources: Mapping[str, str], weights: Mapping[str, float] | None) -> None:
    """Raises ConfigError unless all names and weights of a mixture are valid."""
    if not sources:
        raise ConfigError("data.corpus: has no sources; give a corpus, or names and corpora")
    for name, source in sources.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"data.corpus: {name!r}: the name of a source has letters, digits and _ . - only")
        if not isinstance(source, str) or not source:
            raise ConfigError(f"data.corpus.{name}: must be a corpus, such as my.txt, got {source!r}")
    if weights is None:
        return
    for name, weight in weights.items():
        if name not in sources:
            hint = did_you_mean(name, sources) or f"; the sources are {', '.join(sources)}"
            raise ConfigError(f"data.weights.{name}: data.corpus has no such source{hint}")
        if weight == 0:
            raise ConfigError(f"data.weights.{name}: is 0; leave the source out of data.corpus")
        if not 0 < weight < math.inf:
            raise ConfigError(f"data.weights.{name} must be positive, got {weight:g}")
    if missing := [name for name in sources if name not in weights]:
        raise ConfigError(f"data.weights: has none for {', '.join(missing)}; give one for every source")


class JoinedCorpus(Corpus):
    """The documents of several corpora, one corpus after the other, to learn a tokenizer from."""

    def __init__(self, name: str, corpora: Sequence[Corpus]) -> None:
        self.name, self.corpora = name, corpora
        self.parts = max((corpus.parts for corpus in corpora), key=len)
        self.fingerprint = sha256_json([corpus.fingerprint for corpus in corpora])
        self.separated = any(corpus.separated for corpus in corpora)
        self.num_groups = sum(corpus.num_groups for corpus in corpora)

    def documents(self, part: str) -> Iterator[Iterable[str]]:
        """The documents of a part, as chunks."""
        for corpus in self.corpora:
            if part in corpus.parts:
                yield from corpus.documents(part)

    def items(self, group: int | None = None) -> Iterator[tuple[str, Iterable[str]]]:
        """(part, document) of the documents of a group, or of all groups in order."""
        if group is None:
            for corpus in self.corpora:
                yield from corpus.items()
            return
        for corpus in self.corpora:
            if group < corpus.num_groups:
                yield from corpus.items(group)
                return
            group -= corpus.num_groups


@dataclass(frozen=True)
class MixtureBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate."""

    tokens: Mapping[str, Tokens]
    order: MixtureOrder
    accumulate: int
    world_size: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self.accumulate)
        windows_of_step, context = self.order.starts(step), self.order.context
        num_windows = len(windows_of_step[0])
        shares = (each.reshape(self.world_size, self.accumulate, -1) for each in windows_of_step)
        sources, starts = (each[self.rank, micro_step] for each in shares)
        windows = np.empty((len(starts), context + 1), np.int64)
        for source in np.unique(sources):
            there = sources == source
            windows[there] = windows_at(self.tokens[self.order.names[source]], starts[there], context)
        return windows_batch(windows, num_windows * context)


@dataclass(frozen=True)
class SourceBatches(Dataset[Batch]):
    """Evaluation batches of a source, with its name."""

    batches: Dataset[Batch]
    name: str

    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]._replace(source=self.name)
