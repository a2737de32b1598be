"""Templates: the tokens of a conversation, and which of them count in the loss.

The assistant's messages and the end-of-text tokens after them count; everything else is input only.

Each turn is encoded by itself. If prompt and response were encoded as one text, a token could span both, and training
would show the model prompts that never occur in generation. Encoded turn by turn, the ids read in generation are always
a prefix of those read in training. For the same reason every record begins with the token that the generator puts
before each prompt (`Marks.begin`; by default `<|endoftext|>`). A response that begins a new word must begin with the
space.

The template of a public model, written in Jinja, replaces `chat`: chat_template.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from tinylm.data.chat_template import ChatTemplate
from tinylm.data.pairs import Turn, Turns
from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.tokenizer import END_OF_TEXT, Tokenizer

TooLong = Literal["error", "drop", "truncate"]


@dataclass(frozen=True)
class Template:
    """The format of a conversation: the token that begins a text, then each turn after the token of its role.

    `Marks.end`, by default `<|endoftext|>`, ends every turn of the assistant, in all templates, so generation stops
    there by default.

    Attributes:
        name: the value of `data.template`
        begins: role -> the special token before its turns, or "" for none
        single: whether only one prompt and one response are allowed
    """

    name: str
    begins: dict[str, str] = field(hash=False)
    single: bool = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer must have; an end-of-text token of another name counts too."""
        return (END_OF_TEXT, *filter(None, self.begins.values()))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError if the tokenizer lacks special tokens of the template."""
        if missing := tokenizer.lacking(self.special_tokens):
            raise ConfigError(
                f"data.template={self.name} needs {', '.join(missing)}, which the tokenizer lacks; add it"
            )

    def start_of(self, role: str, tokenizer: Tokenizer) -> list[int]:
        """The ids before a turn of a role."""
        return [tokenizer.special_tokens[self.begins[role]]] if self.begins[role] else []


# Nothing separates prompt and response: a newline or an "Answer:" before the response belongs to the prompt.
PAIRS = Template("pairs", {"user": "", "assistant": ""}, single=True)
CHAT = Template("chat", {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"})
TEMPLATES = {template.name: template for template in (PAIRS, CHAT)}


def find_template(name: str, tokenizer: Tokenizer | None = None) -> Template | ChatTemplate:
    """The template of a name; raises ConfigError for an unknown one.

    Args:
        name: the value of `data.template`
        tokenizer: the model's tokenizer, whose own chat template, if any, replaces `chat`
    """
    if name == CHAT.name and tokenizer is not None and tokenizer.chat is not None:
        return ChatTemplate(tokenizer.chat)
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES) or f", known are {', '.join(TEMPLATES)}"
        raise ConfigError(f"data.template: no template {name!r}{hint}")
    return TEMPLATES[name]


def chat_template(tokenizer: Tokenizer) -> Template | ChatTemplate | None:
    """The template of the conversations that a model knows; None if it was not trained on conversations."""
    known = tokenizer.chat is not None or not tokenizer.lacking(CHAT.special_tokens)
    return find_template(CHAT.name, tokenizer) if known else None


# --- encoding


class Example(NamedTuple):
    """An encoded record.

    Attributes:
        ids: token ids, int64 (n,)
        counts: whether each token counts in the loss, bool (n,)
    """

    ids: np.ndarray
    counts: np.ndarray

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: all but the last, which is only a target."""
        return len(self.ids) - 1


class Preferred(Example):
    """The encoded prompt and chosen response of a preference.

    Attributes:
        rejected: the prompt with the rejected response
    """

    rejected: Example

    @classmethod
    def over(cls, chosen: Example, rejected: Example) -> "Preferred":
        """The chosen response, with the rejected one."""
        made = cls(*chosen)
        made.rejected = rejected
        return made

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads of the longer response."""
        return max(len(self.ids), len(self.rejected.ids)) - 1


def encode_turns(tokenizer: Tokenizer, turns: Sequence[Turn], template: Template | ChatTemplate) -> Example:
    """The tokens of a conversation. The assistant's messages and the end-of-text tokens after them count.

    Special tokens come from the template only: their names within a message are encoded as plain text.

    Raises:
        ConfigError: if the tokenizer lacks special tokens of the template.
        DataError: for turns that the template does not allow, or text that the tokenizer cannot encode.
    """
    if isinstance(template, ChatTemplate):
        return Example(*template.conversation(tokenizer, turns))
    template.check_tokenizer(tokenizer)
    roles = [turn.role for turn in turns]
    if template.single and roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            f"data.template={template.name} takes one prompt and one response, got turns of "
            f"{', '.join(roles)}; set data.template=chat"
        )
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    parts: list[tuple[Sequence[int], bool]] = [(tokenizer.opening, False)]  # ids, and whether they count
    for role, content in turns:
        parts.append((template.start_of(role, tokenizer), False))
        parts.append((tokenizer.encode(content), role == "assistant"))
        if role == "assistant":
            parts.append((end, True))
    counts = np.repeat([counted for _, counted in parts], [len(ids) for ids, _ in parts])
    return Example(np.array([i for ids, _ in parts for i in ids], dtype=np.int64), counts)


def prompt_ids(tokenizer: Tokenizer, turns: Sequence[Turn], template: Template | ChatTemplate) -> list[int]:
    """The prompt of the last response of a whole record: a prefix of its `encode_turns`."""
    if isinstance(template, ChatTemplate):
        return template.prompt(tokenizer, turns[:-1])
    ids = encode_turns(tokenizer, turns[:-1], template).ids.tolist()
    return ids + template.start_of("assistant", tokenizer)


def question_frame(tokenizer: Tokenizer, template: Template) -> tuple[list[int], list[int]]:
    """The ids before and after a user's message that the assistant is to answer."""
    template.check_tokenizer(tokenizer)
    return template.start_of("user", tokenizer), template.start_of("assistant", tokenizer)


def use_template(generator: Any, template: Template | ChatTemplate) -> None:
    """Lets a `Generator` read each prompt as a user's message that the assistant is to answer."""
    tokenizer: Tokenizer = generator.tokenizer
    if isinstance(template, ChatTemplate):
        generator.encode_prompt = lambda prompt: template.prompt(tokenizer, [Turn("user", prompt)])
    else:
        generator.before, generator.after = question_frame(tokenizer, template)
    generator.conversation = True


def stop_after_turns(tokenizer: Tokenizer, template: Template | ChatTemplate) -> Tokenizer:
    """The tokenizer, with the token that ends the assistant's turns added to its stops."""
    end = template.end_of_turn(tokenizer) if isinstance(template, ChatTemplate) else None
    marks = tokenizer.marks
    if end is None or end in marks.stops:
        return tokenizer
    return tokenizer.with_marks(marks.begin, marks.end, [*marks.stops, end])


def encode_pairs(
    tokenizer: Tokenizer,
    pairs: Sequence[Turns],
    template: Template | ChatTemplate,
    context: int,
    too_long: TooLong = "error",
    name: str = "pairs",
) -> list[Example]:
    """Encodes records, none longer than the context.

    Args:
        tokenizer: a tokenizer with the template's special tokens
        pairs: records from `read_pairs`
        template: the format
        context: the most inputs; a record has one more token, which is only a target
        too_long: `error`; `drop` to leave longer records out; `truncate` to cut them at the left, as
            `truncate="left"` does in generation, but never within the last response
        name: the file's name in errors

    Raises:
        ConfigError: if the tokenizer lacks special tokens of the template.
        DataError: for a record that cannot be encoded or is too long; names the record.
    """
    examples = []
    for number, turns in enumerate(pairs, start=1):
        with naming(f"{name}: record {number}"):
            examples.append(encode_turns(tokenizer, turns, template))
    return shortened(examples, context, too_long, name)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Puts the place in a file before the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def shortened(examples: list[Example], context: int, too_long: TooLong, name: str) -> list[Example]:
    """Refuses, drops or cuts the records longer than the context. The arguments are those of `encode_pairs`."""
    longer = [number for number, example in enumerate(examples) if example.num_inputs > context]
    if not longer:
        return examples
    problem = f"{name}: {len(longer):,} of {len(examples):,} records have more than the {context} tokens of the context"
    if too_long == "error":
        first = f"the first is record {longer[0] + 1} with {examples[longer[0]].num_inputs}"
        raise DataError(f"{problem}, {first}; shorten them, or set data.too_long to drop or truncate")
    if too_long == "drop":
        notice(f"{problem}: left out")
        fitting = [example for example in examples if example.num_inputs <= context]
        if not fitting:
            raise DataError(f"{name}: no record fits the context of {context} tokens; raise max_seq_len")
        return fitting
    cut = [Example(example.ids[-(context + 1) :], example.counts[-(context + 1) :]) for example in examples]
    for number in longer:
        if cut[number].counts.all():  # no prompt is left, and part of the response may be cut
            raise DataError(
                f"{name}: record {number + 1}: the response alone fills the context of {context} tokens; shorten it, "
                "or set data.too_long=drop"
            )
    notice(f"{problem}: cut at the left")
    return cut
