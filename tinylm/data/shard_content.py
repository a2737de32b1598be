"""ShardContent: token ids that others have made, trained on where they lie."""

from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from torch.utils.data import Dataset

from tinylm.data.batches import (
    Batch,
    EvaluationBatches,
    Rows,
    TrainingBatches,
    TrainingWindows,
    evenly_spaced,
    too_short,
    window_rows,
)
from tinylm.data.content import Content, Settings, first_words
from tinylm.data.corpora import PARTS
from tinylm.data.pretokenized import (
    Pretokenized,
    check_ids,
    check_recorded,
    find_pretokenized,
    own,
    shard_tokenizer,
)
from tinylm.data.token_array import TokenArray, Tokens
from tinylm.errors import ConfigError, DataError, notice
from tinylm.files import sha256_json
from tinylm.tokenizer import Tokenizer


class ShardContent(Content):
    """Token ids in windows of one context.

    The parts are files of their own; without a file of `val`, `data.split` cuts all ids in the order of the files.

    Args:
        found: the shards
        settings: options of the data module
    """

    def __init__(self, found: Pretokenized, settings: Settings) -> None:
        self.source, self.settings, self._found = found.name, settings, found
        self.unit = f"sequences of {settings.context:,} tokens"

    def _find_tokenizer(self) -> Tokenizer:
        return shard_tokenizer(self._found, self.settings.tokenizer, self.settings.cache_dir)

    @cached_property
    def _checked(self) -> tuple[Pretokenized, str]:
        """The shards, as wide as the vocabulary says where nothing else does, and the fingerprint of the parts.

        All ids are of the vocabulary: of our own shards, the index says so.
        """
        found = find_pretokenized(self.source, self.tokenizer.vocab_size)
        assert found is not None
        check_recorded(found, self.tokenizer)
        if found.kind == own.KIND:
            return found, own.check_own(found.folder)
        digests = check_ids(found, self.tokenizer.vocab_size, self.settings.cache_dir)
        counts = {part: len(shards) for part, shards in found.parts.items()}
        return found, sha256_json(["shards", digests, counts, None if "val" in counts else self.settings.split])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids of each part."""
        return self._checked[1]

    @cached_property
    def tokens(self) -> dict[str, TokenArray]:
        """Token ids of each split, memory-mapped."""
        found, _ = self._checked
        tokens, kind = found.tokens(), found.kind
        total = sum(map(len, tokens.values()))
        if "val" in tokens:
            sizes = ", ".join(f"{len(ids):,} {part}" for part, ids in tokens.items())
            notice(f"{self.source}: {total:,} token ids ({kind}), in parts by their files: {sizes}")
        else:
            tokens = self._cut(tokens["train"])
            notice(f"{self.source}: {total:,} token ids ({kind}), cut by data.split")
        return tokens | {"train": tokens["train"][: self.settings.train_tokens]}

    def _cut(self, ids: TokenArray) -> dict[str, TokenArray]:
        """The ids in parts by `data.split`: the first are `train`."""
        shares = accumulate(Fraction(str(fraction)) for fraction in self.settings.split[:-1])  # exact: 0.6 + 0.3 is 0.9
        bounds = [0, *(int(len(ids) * share) for share in shares), len(ids)]
        return {part: ids[begin:end] for part, (begin, end) in zip(PARTS, pairwise(bounds), strict=False)}

    def _part(self, name: str) -> TokenArray:
        if name not in self.tokens:
            cut = "val" not in self._found.parts
            remedy = "give data.split three fractions, such as [0.8, 0.1, 0.1]" if cut else "no file has that name"
            raise ConfigError(f"data.corpus: {self.source}: has no {name} part; {remedy}")
        if name != "train" and len(self.tokens[name]) < 2:
            raise DataError(f"data.corpus: {self.source}: {name} has {len(self.tokens[name])} tokens, needs at least 2")
        return self.tokens[name]

    def num_tokens(self, part: str) -> int:
        """Tokens in a split."""
        return len(self._part(part))

    @cached_property
    def order(self) -> TrainingWindows:
        """The order of the windows."""
        tokens, settings = self._part("train"), self.settings
        if len(tokens) <= settings.context:
            cut = len(tokens) == settings.train_tokens
            name, remedy = ("train_tokens", "raise it") if cut else (f"corpus: {self.source}", "give more tokens")
            raise DataError(f"data.{name}: {too_short(len(tokens), settings.context, remedy)}")
        return TrainingWindows(len(tokens), settings.context, settings.batch_size, settings.seed)

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
        """A process's batches of adjacent windows."""
        tokens = self._part(part)
        rows = window_rows(len(tokens), self.settings.context)
        chosen = evenly_spaced(len(rows.begins), len(tokens), len(tokens) if max_tokens is None else max_tokens)
        return EvaluationBatches(tokens, Rows(rows.begins[chosen], rows.ends[chosen]), batch_size, world_size, rank)

    def example_prompt(self) -> str:
        """The first words of a document; empty if they would be all of it."""
        return prompt_from(self.tokens.get("val", self.tokens["train"])[:200], self.tokenizer)


def prompt_from(tokens: Tokens, tokenizer: Tokenizer) -> str:
    """The first words of the first document, or line, that begins among some tokens."""
    ids, end = np.asarray(tokens).tolist(), tokenizer.end_of_text
    begin = ids.index(end) + 1 if end in ids[:-1] else 0
    stop = ids.index(end, begin) if end in ids[begin:] else len(ids)
    text = tokenizer.decode(ids[begin:stop])
    if not begin:  # the tokens may begin within a line
        text = text.partition("\n")[2] or text
    words = first_words(text)
    return "" if stop < len(ids) and words == text.strip() else words
