"""TokenContent: token ids from Python, in windows of one context."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from tinylm.data.content import Settings, WindowContent, first_words
from tinylm.data.token_array import Tokens
from tinylm.errors import DataError
from tinylm.files import sha256_bytes, sha256_json
from tinylm.tokenizer import Tokenizer

BLOCK = 1 << 24  # ids read at a time


class TokenContent(WindowContent):
    """Token ids of each split, as they are.

    Args:
        tokens: part -> ids, (tokens,), of any integer type; documents end with the tokenizer's `<|endoftext|>`
        tokenizer: the tokenizer that the ids are of
        source: the name of the data, for messages
        settings: options of the data module
        fingerprint: SHA-256 of everything that determines the ids. Default: that of the ids
        short_documents: whether windows begin with a document

    Raises:
        DataError: if an id is not in the tokenizer's vocabulary; found when `tokens` is first read.
    """

    def __init__(
        self,
        tokens: Mapping[str, Tokens],
        tokenizer: Tokenizer,
        source: str,
        settings: Settings,
        *,
        fingerprint: str | None = None,
        short_documents: bool = False,
    ) -> None:
        self.source, self.settings, self._given, self._fingerprint = source, settings, dict(tokens), fingerprint
        self.short_documents = short_documents
        self.use_tokenizer(tokenizer)

    def _find_tokenizer(self) -> Tokenizer:
        raise AssertionError("the ids came with their tokenizer")

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""
        for part, ids in self._given.items():
            check_ids(ids, self.tokenizer.vocab_size, f"data.corpus: {self.source}: {part}")
        return self._given | {"train": self._given["train"][: self.settings.train_tokens]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids of the splits."""
        if self._fingerprint is None:
            self._fingerprint = sha256_json([[part, fingerprint_of(ids)] for part, ids in self._given.items()])
        return self._fingerprint

    def example_prompt(self) -> str:
        """The first words of the text; empty if they would be a whole document."""
        ids = self.tokens.get("val", self.tokens["train"])[:200].tolist()
        end = self.tokenizer.end_of_text
        if end is not None and end in ids[:-1] and not self.short_documents:
            ids = ids[ids.index(end) + 1 :]  # the split may begin within a document
        document = ids[: ids.index(end)] if end is not None and end in ids else ids
        text = self.tokenizer.decode(document)
        words = first_words(text)
        return "" if len(document) < len(ids) and words == text.strip() else words


def check_ids(ids: Tokens, vocab_size: int, name: str) -> None:
    """Raises DataError for the first id that is not in the vocabulary, with its position."""
    for first in range(0, len(ids), BLOCK):
        block = np.asarray(ids[first : first + BLOCK])
        wrong = (block < 0) | (block >= vocab_size)
        if wrong.any():
            place = int(wrong.argmax())
            problem = f"{block[place]} at position {first + place:,}, and the tokenizer has {vocab_size:,} tokens"
            raise DataError(f"{name} has id {problem}; give the tokenizer that made the ids")


def fingerprint_of(ids: Tokens) -> str:
    """SHA-256 of ids, whatever their type."""
    blocks = (np.asarray(ids[first : first + BLOCK]).astype("<i8") for first in range(0, len(ids), BLOCK))
    return sha256_json([sha256_bytes(block.tobytes()) for block in blocks])
