"""Begin and end marks of texts, and the settings and chat template of an imported tokenizer.

A tokenizer trained by tinylm ends each text with `<|endoftext|>`. An imported tokenizer has its own marks, the settings
of its model folder, which exports write again, and perhaps a chat template. Tokenizers are immutable: `with_marks` and
similar methods return copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from tinylm.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


class Marks(NamedTuple):
    """The ids that mark the beginning and the end of a text.

    Attributes:
        begin: the id before every text that the model reads, or None
        end: the id that separates documents and ends an answer, or None
        stops: the ids that end generation
    """

    begin: int | None
    end: int | None
    stops: tuple[int, ...]


class Chat(NamedTuple):
    """A model's own chat template, which data/chat_template.py applies.

    Attributes:
        template: the template, in Jinja
        names: variable of the template, such as `bos_token` or `eos_token` -> its special token
        others: name -> template for another purpose, such as tool use, kept for exports only
    """

    template: str
    names: dict[str, str]
    others: dict[str, str]


class Marked(ABC):
    """A vocabulary with marks, the settings of another program and a chat template.

    Attributes:
        ends: names of special tokens that end a text
        special_tokens: name -> id
    """

    ends: ClassVar[tuple[str, ...]] = (END_OF_TEXT,)
    special_tokens: dict[str, int]
    _marks: Marks | None = None
    _origin: dict[str, Any] | None = None
    _chat: Chat | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""

    @property
    def marks(self) -> Marks:
        """The marks set by `with_marks`. By default the first special token of `ends` is begin, end and stop."""
        end = next((self.special_tokens[name] for name in self.ends if name in self.special_tokens), None)
        return self._marks or Marks(end, end, () if end is None else (end,))

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

    def _with(self, options: dict[str, Any], marks: Marks | None, origin: dict[str, Any] | None) -> Self:
        """A copy with other options, marks and origin."""
        tokenizer = type(self)(**options)
        tokenizer._marks, tokenizer._origin = None if marks == tokenizer.marks else marks, origin or None
        tokenizer._chat = self._chat
        return tokenizer

    @property
    def chat(self) -> Chat | None:
        """The chat template that came with the model; None if it has none."""
        return self._chat

    def with_chat(self, chat: Chat | None) -> Self:
        """A copy with another chat template; raises TypeError for one that is not text."""
        for text in () if chat is None else (chat.template, *chat.names.values(), *chat.others.values()):
            if not isinstance(text, str):
                raise TypeError(f"a chat template and its names must be text, got {text!r}")
        tokenizer = self._with(self.options(), self._marks, self._origin)
        tokenizer._chat = chat
        return tokenizer

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The names among these that are not special tokens.

        If `with_marks` has set an end of text under another name, `<|endoftext|>` is not missing.
        """
        ends = self.ends if self._marks is not None and self._marks.end is not None else ()
        return [name for name in names if name not in self.special_tokens and name not in ends]

    def _marks_with(self, new: Sequence[str]) -> Marks | None:
        """The marks after new special tokens are added. If the end is None, a new token of `ends` becomes the end."""
        if self._marks is None or self._marks.end is not None:
            return self._marks
        end = next((self.vocab_size + new.index(name) for name in self.ends if name in new), None)
        return self._marks if end is None else Marks(self._marks.begin, end, (*self._marks.stops, end))
