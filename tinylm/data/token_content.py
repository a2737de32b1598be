"""TokenContent: token ids from Python, in windows of one context."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylm.data.content import Settings
from tinylm.data.corpora import PARTS
from tinylm.data.corpora.base import MANY, cut, part_of
from tinylm.data.corpora.items import Items
from tinylm.data.pretrained import pretrained_tokenizer
from tinylm.data.text_content import WindowContent, first_words
from tinylm.data.token_array import TokenArray, Tokens
from tinylm.data.tokens import is_tokenizer_file
from tinylm.errors import ConfigError, DataError
from tinylm.files import sha256_bytes, sha256_json
from tinylm.plugins import Part
from tinylm.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

BLOCK = 1 << 24  # ids read at a time


class TokenContent(WindowContent):
    """Token ids of each split, used as given.

    Args:
        tokens: part -> ids, (tokens,), of any integer type; documents end with the tokenizer's `<|endoftext|>`
        tokenizer: the tokenizer that made the ids
        source: the name of the data, for messages
        settings: options of the data module
        fingerprint: SHA-256 of everything that determines the ids. Default: the SHA-256 of the ids
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


# --- ids out of Python objects


@dataclass(frozen=True)
class TokenSource:
    """A Python object that gives token ids: one long sequence, or one for each document.

    Attributes:
        given: the object
        name: what it is, for messages
        uses_field: whether the ids are a field of records
    """

    given: Tokens | Items
    name: str
    uses_field: bool = False

    def read(self, tokenizer: Tokenizer) -> list[np.ndarray] | Tokens:
        """The ids of each document, or the one long sequence, which is not copied.

        Raises:
            DataError: if a document is not a sequence of ids, or has an id that is not in the vocabulary.
        """
        return read_ids(self.given, tokenizer) if isinstance(self.given, Items) else self.given


def token_source(given: Any, field: str, option: str) -> TokenSource | Items:
    """The token ids of a Python object, or its items if they are not ids."""
    if isinstance(given, torch.Tensor) and given.ndim == 1:
        given = given.detach().cpu().numpy()
    if isinstance(given, TokenArray) or (
        isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu"
    ):
        return TokenSource(given, f"array of {given.dtype}")
    items = Items(given, field, option)
    return TokenSource(items, items.name, items.uses_field) if _are_ids(items.first) else items


def _are_ids(value: Any) -> bool:
    """Whether the first value of an object is a token id, or a document of them."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 1 and np.asarray(value).dtype.kind in "iu"
    first = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(first, int | np.integer) and not isinstance(first, bool)


def read_ids(items: Items, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of each document, or of the only one if the items are single ids."""
    single = isinstance(items.first, int | np.integer)
    values: Iterable[Any] = [np.fromiter(items, np.int64)] if single else items
    documents = []
    for number, value in enumerate(values, start=1):
        ids = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        name = f"{items.option}: {items.name}: item {number}"
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
            problem = f"is {type(value).__name__} of shape {ids.shape} and type {ids.dtype}"
            raise DataError(f"{name} {problem}, not a sequence of token ids")
        check_ids(ids, tokenizer.vocab_size, name)
        if ids.size:
            documents.append(ids.astype(tokenizer.dtype))
    return documents


def join_ids(documents: list[np.ndarray], end: int | None) -> np.ndarray:
    """The ids of documents one after the other; if there are several, each ends with `end`, unless that is None."""
    several = end is not None and len(documents) > 1

    def each() -> Iterator[np.ndarray]:
        for ids in documents:
            yield ids
            if several and ids[-1] != end:
                yield np.array([end], ids.dtype)

    return np.concatenate([*each()]) if documents else np.empty(0, np.uint16)


def split_ids(given: list[np.ndarray] | Tokens, split: tuple[float, ...], end: int | None) -> dict[str, Tokens]:
    """The ids of each part: documents are split like a text, by ids instead of characters.

    Args:
        given: the ids of each document, or one long sequence
        split: fractions of the parts
        end: the id that separates documents; None: there is none
    """
    parts = PARTS[: len(split)]
    if isinstance(given, list) and len(given) >= MANY:
        chosen: dict[str, list[np.ndarray]] = {part: [] for part in parts}
        for ids in given:
            chosen[part_of(hashlib.sha256(ids.astype("<i8").tobytes()).digest(), split, parts)].append(ids)
        return {part: join_ids(documents, end) for part, documents in chosen.items()}
    whole = join_ids(given, end) if isinstance(given, list) else given
    return {part: whole[begin:end] for part, (begin, end) in zip(parts, cut(len(whole), split), strict=True)}


def tokenizer_of_ids(spec: str | Part, cache_dir: Path) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, for ids that it made.

    Raises:
        ConfigError: for a kind that would first have to be trained on a text.
    """
    if isinstance(spec, str) and is_tokenizer_file(spec):
        return load_tokenizer(spec)
    if isinstance(spec, str) and spec.partition(":")[0] == "tiktoken":
        return pretrained_tokenizer(spec.partition(":")[2], cache_dir)
    if spec == ByteTokenizer.kind:
        return ByteTokenizer()
    raise ConfigError(f"data.tokenizer: {spec} is learned from a text; give the tokenizer that made the token ids")
