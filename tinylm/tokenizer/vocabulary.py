"""The vocabulary of a tokenizer, and ids -> text.

A vocabulary is a table of byte strings, one per id. Decoding is therefore common to all tokenizers: join the bytes and
decode UTF-8. Marks, settings and the chat template come with a tokenizer that is imported from another program; exports
write them again. Vocabularies are immutable: `with_marks` and similar methods return copies.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, dropwhile, islice
from typing import Any, ClassVar, Self

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.marks import END_OF_TEXT, Chat, Marks, end_marks, first_id


class Vocabulary(ABC):
    """Token ids to text.

    Attributes:
        token_bytes: the bytes of each id; for a special token, its name in UTF-8
        special_tokens: name -> id
        ends: names of special tokens that end a text
        lone_space: the id of a space alone, if decoding drops every one at the beginning of a text; else None
    """

    ends: ClassVar[tuple[str, ...]] = (END_OF_TEXT,)
    lone_space: int | None = None
    _marks: Marks | None = None
    _origin: dict[str, Any] | None = None
    _chat: Chat | None = None

    def __init__(
        self, token_bytes: list[bytes], special_tokens: Sequence[str] = (), pieces: dict[str, int] | None = None
    ) -> None:
        """Creates the table.

        Args:
            token_bytes: the bytes of each ordinary token
            special_tokens: names, whose ids follow
            pieces: ordinary tokens by name. A special token that is one of them keeps its id.

        Raises:
            ConfigError: if special tokens are equal or empty.
        """
        new = [name for name in special_tokens if name not in (pieces or {})]
        ids = {**(pieces or {}), **{name: len(token_bytes) + i for i, name in enumerate(new)}}
        self.special_tokens = {name: ids[name] for name in special_tokens}
        if len(self.special_tokens) != len(special_tokens) or "" in self.special_tokens:
            raise ConfigError(f"special_tokens must be distinct and not empty, got {list(special_tokens)}")
        self.token_bytes = token_bytes + [utf8(name) for name in new]

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> np.dtype:
        """The smallest dtype that holds all ids: uint16 or uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text per id, int64 (V,); 0 for special tokens."""
        lengths = np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    # --- special tokens and marks

    def with_special_tokens(self, names: Iterable[str]) -> Self:
        """A copy with more special tokens, whose ids follow the existing ones. Existing names are skipped."""
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        options = self.options()
        options["special_tokens"] = [*options["special_tokens"], *new]
        if "ids" in options:
            options["ids"] = [*options["ids"], *range(self.vocab_size, self.vocab_size + len(new))]
        return self._with(options, self._marks_with(new), self._origin)

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The names among these that are not special tokens.

        If `with_marks` has set an end of text under another name, `<|endoftext|>` is not missing.
        """
        ends = self.ends if self._marks is not None and self._marks.end is not None else ()
        return [name for name in names if name not in self.special_tokens and name not in ends]

    @property
    def marks(self) -> Marks:
        """The marks set by `with_marks`. By default the first special token of `ends` is begin, end and stop."""
        return self._marks or end_marks(first_id(self.ends, self.special_tokens))

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, or None."""
        return self.marks.end

    @property
    def opening(self) -> list[int]:
        """The ids before every text that the model reads: `marks.begin`, or none."""
        return [] if self.marks.begin is None else [self.marks.begin]

    @property
    def adds_begin(self) -> bool:
        """Whether the tokenizer's original files, of another program, put `marks.begin` before a text."""
        return self.marks.begin is not None and (self._marks is not None or "template" in self.origin)

    def with_marks(self, begin: int | None, end: int | None, stops: Iterable[int]) -> Self:
        """A copy with other marks, as in `Marks`.

        Raises:
            ConfigError: for an id outside the vocabulary.
        """
        marks = Marks(begin, end, tuple(dict.fromkeys(stops)))
        for token in {begin, end, *marks.stops} - {None}:
            if not 0 <= token < self.vocab_size:
                raise ConfigError(f"marks: {token} is outside the vocabulary of {self.vocab_size}")
        return self._with(self.options(), marks, None)

    def _marks_with(self, new: Sequence[str]) -> Marks | None:
        """The marks after new special tokens are added. If the end is None, a new token of `ends` becomes the end."""
        end = first_id(self.ends, {name: self.vocab_size + i for i, name in enumerate(new)})
        if self._marks is None or self._marks.end is not None or end is None:
            return self._marks
        return Marks(self._marks.begin, end, (*self._marks.stops, end))

    @property
    def origin(self) -> dict[str, Any]:
        """Settings of the model folder that the tokenizer was read from. Exports write them again. Often empty.

        The keys are file names (`config.json`) and `template`: the post_processor of tokenizer.json if it appends a
        token to a text, or true if it only prepends one. `with_marks` clears the settings.
        """
        return self._origin or {}

    @property
    def imported(self) -> bool:
        """Whether `origin` has settings of a model folder, beside the training settings in SentencePiece's file."""
        return bool(self.origin.keys() - {"tokenizer.model"})

    def with_origin(self, origin: dict[str, Any]) -> Self:
        """A copy with the settings of another program's folder."""
        return self._with(self.options(), self._marks, origin)

    @property
    def chat(self) -> Chat | None:
        """The chat template that came with the model; None if it has none."""
        return self._chat

    def with_chat(self, chat: Chat | None) -> Self:
        """A copy with another chat template; raises TypeError for one that is not text."""
        for text in () if chat is None else (chat.template, *chat.names.values(), *chat.others.values()):
            if not isinstance(text, str):
                raise TypeError(f"a chat template and its names must be text, got {text!r}")
        copy = self._with(self.options(), self._marks, self._origin)
        copy._chat = chat
        return copy

    def _with(self, options: dict[str, Any], marks: Marks | None, origin: dict[str, Any] | None) -> Self:
        """A copy with other options, marks and origin."""
        copy = type(self)(**options)
        copy._marks, copy._origin, copy._chat = None if marks == copy.marks else marks, origin or None, self._chat
        return copy

    # --- ids -> text

    def until_stop(self, ids: list[int]) -> list[int]:
        """The ids before the first of `marks.stops`."""
        return ids[: next((place for place, token in enumerate(ids) if token in self.marks.stops), len(ids))]

    def decode(self, ids: Iterable[int], errors: str = "replace", *, continues: bool = False) -> str:
        """The text of token ids.

        Args:
            ids: token ids; may be an array or a tensor
            errors: treatment of invalid UTF-8, as in `bytes.decode`
            continues: whether the ids continue a text; if so, no space is dropped at the beginning

        Raises:
            DataError: for an id outside the vocabulary; for invalid UTF-8 if errors is "strict".
        """
        ids = list(ids if continues else self._without_lone_spaces(ids))
        try:
            text = b"".join(map(self._bytes, ids)).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise DataError(f"these tokens are not UTF-8 ({error.reason} at byte {error.start})") from error
        return text.removeprefix(" ") if self._strips(ids[:1]) and not continues else text

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of ids as they arrive, in whole characters. The pieces join to `decode(ids)`."""
        ids = iter(self._without_lone_spaces(ids))
        opening = list(islice(ids, 1))
        strips, piece_of = self._strips(opening), self.piece_decoder()
        for piece in filter(None, map(piece_of, chain(opening, ids, [None]))):
            yield from filter(None, [piece.removeprefix(" ") if strips else piece])
            strips = False

    def piece_decoder(self) -> Callable[[int | None], str]:
        """An incremental decoder: call it with each id of a text in order, then with None.

        Each call returns the characters that the id completes.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda i: decoder.decode(b"", final=True) if i is None else decoder.decode(self._bytes(i))

    def _bytes(self, token: int) -> bytes:
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise DataError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self.token_bytes[token]

    def _without_lone_spaces(self, ids: Iterable[int]) -> Iterable[int]:
        """The ids from the first one on that is not `lone_space`."""
        return ids if self.lone_space is None else dropwhile(lambda token: int(token) == self.lone_space, ids)

    def without_first_spaces(self, text: str) -> str:
        """The text without the space that decoding drops, or without all at the beginning if it has a `lone_space`."""
        return text.removeprefix(" ") if self.lone_space is None else text.lstrip(" ")

    def _strips(self, first: list[int]) -> bool:
        """Whether decoding drops the space that encoding put before these first ids."""
        return False
