"""Marks around the text of a tokenizer, and what came with it from the folder of a model.

A tokenizer that tinylm trains ends a text by `<|endoftext|>`. One of another program brings its own marks, the settings
of its folder, which an export writes again, and perhaps a chat template. A tokenizer never changes: `with_marks` and
the like return copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from tinylm.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


class Marks(NamedTuple):
    """The ids that mark the beginning and the end of a text.

    Attributes:
        begin: precedes every text that the model reads; None for nothing
        end: separates documents and ends an answer; None for nothing
        stops: ids at which generation ends
    """

    begin: int | None
    end: int | None
    stops: tuple[int, ...]


class Chat(NamedTuple):
    """A model's own chat template, which data/chat_template.py applies.

    Attributes:
        template: the template, in Jinja
        names: `bos_token`, `eos_token`, ... -> the special token that the template means by it
        others: name -> template for another purpose, such as tool use, which is kept for exports
    """

    template: str
    names: dict[str, str]
    others: dict[str, str]


class Marked(ABC):
    """A vocabulary with marks, settings of another program and a chat template.

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
        """The ids around a text: those set by `with_marks`, or the first of `ends` that there is, for all three."""
        end = next((self.special_tokens[name] for name in self.ends if name in self.special_tokens), None)
        return self._marks or Marks(end, end, () if end is None else (end,))

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, or None if there is none."""
        return self.marks.end

    @property
    def opening(self) -> list[int]:
        """The ids before every text that the model reads: `marks.begin`, if there is one."""
        return [] if self.marks.begin is None else [self.marks.begin]

    @property
    def adds_begin(self) -> bool:
        """Whether the files of another program, from which the tokenizer comes, put `marks.begin` before a text."""
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
        """Settings of the folder of another program that it was read from, which an export writes again; often empty.

        Its keys are names of files (`config.json`), and `template`: the post_processor of tokenizer.json if it puts a
        token behind a text, or true if it only puts one before it. `with_marks` forgets it.
        """
        return self._origin or {}

    @property
    def imported(self) -> bool:
        """Whether `origin` has settings of a model's folder, not only what SentencePiece's file says about training."""
        return bool(self.origin.keys() - {"tokenizer.model"})

    def with_origin(self, origin: dict[str, Any]) -> Self:
        """A copy with the settings of another program's folder."""
        return self._with(self.options(), self._marks, origin)

    def _with(self, options: dict[str, Any], marks: Marks | None, origin: dict[str, Any] | None) -> Self:
        """A tokenizer of this class."""
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
        """Those of these special tokens that the tokenizer lacks.

        An end of text under another name, set by `with_marks`, counts as `<|endoftext|>`.
        """
        ends = self.ends if self._marks is not None and self._marks.end is not None else ()
        return [name for name in names if name not in self.special_tokens and name not in ends]

    def _marks_with(self, new: Sequence[str]) -> Marks | None:
        """The marks set by `with_marks`, after special tokens are added: the first of `ends` becomes a missing end."""
        if self._marks is None or self._marks.end is not None:
            return self._marks
        end = next((self.vocab_size + new.index(name) for name in self.ends if name in new), None)
        return self._marks if end is None else Marks(self._marks.begin, end, (*self._marks.stops, end))
