"""ShardContent: training on token ids made by another program, read in place."""

from functools import cached_property

import numpy as np

from tinylm.data.content import WHOLE, Settings
from tinylm.data.corpora.base import PARTS, cut
from tinylm.data.pretokenized import Pretokenized, check_ids, check_recorded, find_pretokenized, own, shard_tokenizer
from tinylm.data.text_content import WindowContent, first_words
from tinylm.data.token_array import TokenArray, Tokens
from tinylm.errors import notice
from tinylm.files import sha256_json
from tinylm.tokenizer import Tokenizer


class ShardContent(WindowContent):
    """Token ids in windows of one context.

    Each part has its own files; without a `val` file, `data.split` cuts all ids in the order of the files.

    Args:
        found: the shards
        settings: options of the data module
    """

    def __init__(self, found: Pretokenized, settings: Settings) -> None:
        self.source, self.settings, self._found = found.name, settings, found

    def _find_tokenizer(self) -> Tokenizer:
        return shard_tokenizer(self._found, self.settings.tokenizer, self.settings.cache_dir)

    @cached_property
    def _checked(self) -> tuple[Pretokenized, str]:
        """The shards, with ids as wide as the format says or the vocabulary requires, and the fingerprint of the parts.

        All ids are checked against the vocabulary; for our own shards, the index guarantees it.
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
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split, memory-mapped."""
        found, _ = self._checked
        tokens, kind = found.tokens(), found.kind
        total = sum(map(len, tokens.values()))
        if "val" in tokens and self.settings.split == WHOLE:
            tokens = {"train": tokens["train"]}
            notice(f"{self.source}: {len(tokens['train']):,} token ids ({kind}) to train on")
        elif "val" in tokens:
            sizes = ", ".join(f"{len(ids):,} {part}" for part, ids in tokens.items())
            notice(f"{self.source}: {total:,} token ids ({kind}), in parts by their files: {sizes}")
        else:
            tokens = self._cut(tokens["train"])
            notice(f"{self.source}: {total:,} token ids ({kind}), cut by data.split")
        return {**tokens, "train": tokens["train"][: self.settings.train_tokens]}

    def _cut(self, ids: TokenArray) -> dict[str, TokenArray]:
        """The ids in parts by `data.split`: the first are `train`."""
        bounds = cut(len(ids), self.settings.split)
        return {part: ids[begin:end] for part, (begin, end) in zip(PARTS, bounds, strict=False)}

    def _missing(self, part: str) -> str:
        """The problem of a part that there is none of."""
        if "val" in self._found.parts:
            return f"data.corpus: {self.source}: no file is named {part}; name one so"
        return super()._missing(part).removesuffix(", or data.val")

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
