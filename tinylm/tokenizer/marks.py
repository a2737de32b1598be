"""Begin and end marks of texts, and the chat template of an imported tokenizer.

A tokenizer trained by tinylm ends each text with `<|endoftext|>`. An imported tokenizer has its own marks, and perhaps
a chat template.
"""

from collections.abc import Sequence
from typing import NamedTuple

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


def end_marks(end: int | None) -> Marks:
    """The marks of a tokenizer with one mark: it begins and ends a text, and ends generation."""
    return Marks(end, end, () if end is None else (end,))


def first_id(names: Sequence[str], special_tokens: dict[str, int]) -> int | None:
    """The id of the first of these names that is a special token, or None."""
    return next((special_tokens[name] for name in names if name in special_tokens), None)
