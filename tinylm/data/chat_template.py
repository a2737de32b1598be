"""Chat templates in Jinja, as published with public models: the tokens of a conversation, and which of them count.

A template is a program that writes a whole conversation as one text. It runs in Jinja's sandbox with the settings and
functions that transformers gives it, and the text is encoded as transformers encodes it, with special tokens. Names of
special tokens within a message stay plain text, whereas transformers turns them into special tokens.

The loss covers what the template marks by {% generation %}. If it marks nothing, the loss covers what each message of
the assistant adds to the text before it and its generation prompt, up to the last special token, such as <|im_end|>.
This requires that the template writes the beginning of a conversation by itself as it does within the whole. Templates
that do not, such as those that remove thoughts from earlier turns, are refused where this makes a difference.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinylm.data.pairs import Turn
from tinylm.errors import DataError
from tinylm.tokenizer import Chat, Tokenizer

PRIVATE = range(0xF0000, 0xFFFFE)  # characters that no standard gives a meaning


class Rendered(NamedTuple):
    """The text of a conversation.

    Attributes:
        text: with the character `cut` inserted into each name of a special token within a message
        spans: what the template marks by {% generation %}, as positions in the text
        cut: a character that occurs nowhere else
    """

    text: str
    spans: list[tuple[int, int]]
    cut: str


class ChatTemplate:
    """A chat template of a public model, for `data.template=chat`.

    Args:
        chat: the template and its names of special tokens

    Raises:
        DataError: if it is not valid Jinja.
    """

    name = "chat"
    single = False
    special_tokens = ()  # the model has them

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        _ = self._compiled

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """The template, in the environment of transformers."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            return environment.from_string(self.chat.template)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the model's chat template is not valid Jinja (line {error.lineno}: {error.message}); repair "
                "chat_template in its tokenizer_config.json, or leave it out to use tinylm's"
            ) from error

    def conversation(self, tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a conversation, int64 (n,), and whether each counts in the loss, bool (n,).

        Raises:
            DataError: if the template refuses the conversation, or does not say which tokens are the assistant's.
        """
        whole = self.render(tokenizer, turns)
        ids = self.encode(tokenizer, whole, len(whole.text))
        counts = np.zeros(len(ids), dtype=np.bool_)
        for begin, end in whole.spans or self._spans(tokenizer, turns, whole):
            first = _common(ids, self.encode(tokenizer, whole, begin))
            last = _common(ids, self.encode(tokenizer, whole, end))
            counts[first : last if whole.spans else _trimmed(tokenizer, ids, first, last)] = True
        return np.array(ids, dtype=np.int64), counts

    def prompt(self, tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[int]:
        """The ids of a conversation that the assistant is to continue, with the generation prompt."""
        rendered = self.render(tokenizer, turns, generation_prompt=True)
        return self.encode(tokenizer, rendered, len(rendered.text))

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The special token that ends the assistant's turns; None if the template writes none."""
        ids, counts = self.conversation(tokenizer, [Turn("user", "a"), Turn("assistant", "b")])
        last = int(ids[counts][-1]) if counts.any() else None
        return last if last in tokenizer.special_tokens.values() else None

    def _spans(self, tokenizer: Tokenizer, turns: Sequence[Turn], whole: Rendered) -> list[tuple[int, int]]:
        """Positions in the whole text of what each message of the assistant adds to it."""
        spans = []
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self.render(tokenizer, turns[:number], turns, generation_prompt=True).text
                after = self.render(tokenizer, turns[: number + 1], turns).text
                if not (after.startswith(before) and whole.text.startswith(after)):
                    raise DataError(
                        f"the model's chat template writes message {number + 1}, of the assistant, differently "
                        "when the conversation goes on, so its tokens are unknown; give one answer per record"
                    )
                spans.append((len(before), len(after)))
        return spans

    def render(
        self,
        tokenizer: Tokenizer,
        turns: Sequence[Turn],
        whole: Sequence[Turn] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> Rendered:
        """Writes the text of a conversation.

        Args:
            tokenizer: the model's tokenizer
            turns: the conversation
            whole: the conversation of which `turns` is the beginning, for the same choice of `cut`
            generation_prompt: whether the beginning of an answer follows

        Raises:
            DataError: if the template refuses the conversation.
        """
        contents = [turn.content for turn in whole or turns]
        used = set(self.chat.template).union(*contents)
        cut, begin, end = [chr(code) for code in PRIVATE if chr(code) not in used][:3]
        messages = [{"role": turn.role, "content": _protected(tokenizer, turn.content, cut)} for turn in turns]
        values: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, **self.chat.names}
        values |= {"add_generation_prompt": generation_prompt, Generation.begin: begin, Generation.end: end}
        try:
            text = self._compiled.render(values)
        except Exception as error:  # a template can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"the model's chat template refuses this conversation: {reason}") from error
        return Rendered(text.replace(begin, "").replace(end, ""), _positions(text, begin, end), cut)

    @staticmethod
    def encode(tokenizer: Tokenizer, rendered: Rendered, end: int) -> list[int]:
        """The ids of the text up to a position."""
        parts = rendered.text[:end].split(rendered.cut)
        return [i for part in parts for i in tokenizer.encode(part, allow_special=True)]


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: puts two characters, variables of the template, around its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)
    begin, end = "generation_begins", "generation_ends"

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements that replace the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        around = [nodes.Output([nodes.Name(name, "load")]).set_lineno(line) for name in (self.begin, self.end)]
        return [around[0], *body, around[1]]


def _protected(tokenizer: Tokenizer, content: str, cut: str) -> str:
    """A message in which no name of a special token is whole."""
    for name in sorted(tokenizer.special_tokens, key=len, reverse=True):
        if len(name) > 1:
            content = content.replace(name, f"{name[0]}{cut}{name[1:]}")
    return content


def _positions(text: str, begin: str, end: str) -> list[tuple[int, int]]:
    """The spans between two characters, as positions in the text without these."""
    spans, done = [], 0
    for number, part in enumerate(text.split(begin)):
        inside, _, outside = part.partition(end)
        if number:
            spans.append((done, done + len(inside)))
        done += len(inside) + len(outside)
    return spans


def _common(ids: list[int], others: list[int]) -> int:
    """Number of ids that two lists have in common at the beginning."""
    pairs = zip(ids, others, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))


def _trimmed(tokenizer: Tokenizer, ids: list[int], first: int, last: int) -> int:
    """The end of a span without the white space after its last special token."""
    special = set(tokenizer.special_tokens.values())
    after = next((place + 1 for place in reversed(range(first, last)) if ids[place] in special), last)
    return last if tokenizer.decode(ids[after:last]).strip() else after


# --- functions of templates


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`, without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
