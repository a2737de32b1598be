"""How the turns of a conversation become tokens, and which of these a model is to learn.

What the assistant says, and the token that ends it, is to be predicted; everything else is only read.

Each turn is encoded by itself. Were prompt and response encoded as one text, a token could begin in the one and end in
the other, and training would show the model prompts that it never gets when it answers: here the ids that generation
reads are always the beginning of those that training read. For the same reason every record begins with
`<|endoftext|>`, which the generator puts before each prompt. A response that is to begin a new word begins with the
space.

Left out: templates written in Jinja.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from tinylm.data.pairs import Turn, Turns
from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.tokenizer import END_OF_TEXT, Tokenizer

TooLong = Literal["error", "drop", "truncate"]


@dataclass(frozen=True)
class Template:
    """How turns become tokens: `<|endoftext|>`, then each turn behind its role's token, the assistant's with an end.

    One token ends an answer whatever the template, `<|endoftext|>`: so generation stops without being told how.

    Attributes:
        name: what `data.template` calls it
        begins: role -> the special token before its turns, or "" for none
        single: whether it has place for one prompt and one response only
    """

    name: str
    begins: dict[str, str] = field(hash=False)
    single: bool = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The names that a tokenizer must have among its special tokens."""
        return (END_OF_TEXT, *filter(None, self.begins.values()))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Checks that a tokenizer has the special tokens.

        Raises:
            ConfigError: naming those that it lacks.
        """
        lacking = [name for name in self.special_tokens if name not in tokenizer.special_tokens]
        if lacking:
            raise ConfigError(
                f"data.template={self.name} needs {', '.join(lacking)}, which the tokenizer lacks; add it"
            )


# Nothing stands between prompt and response: a newline or an "Answer:" that asks for the response is the prompt's.
PAIRS = Template("pairs", {"user": "", "assistant": ""}, single=True)
CHAT = Template("chat", {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"})
TEMPLATES = {template.name: template for template in (PAIRS, CHAT)}


def find_template(name: str) -> Template:
    """The template of a name.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES) or f", known are {', '.join(TEMPLATES)}"
        raise ConfigError(f"data.template: no template {name!r}{hint}")
    return TEMPLATES[name]


# --- encoding


class Example(NamedTuple):
    """An encoded record.

    Attributes:
        ids: of all tokens, int64 (n,)
        counts: which of them are to be predicted, bool (n,)
    """

    ids: np.ndarray
    counts: np.ndarray

    @property
    def num_inputs(self) -> int:
        """Places in the context: the last token is only predicted."""
        return len(self.ids) - 1


def encode_turns(tokenizer: Tokenizer, turns: Sequence[Turn], template: Template) -> Example:
    """The tokens of a conversation; what counts is what the assistant says, and the tokens that end it.

    Special tokens come from the template only: their names in what somebody said are plain text.

    Raises:
        ConfigError: if the tokenizer lacks special tokens of the template.
        DataError: for a role or a number of turns that the template has no place for, or text without ids.
    """
    template.check_tokenizer(tokenizer)
    _check_turns(turns, template)
    special, end = tokenizer.special_tokens, [tokenizer.special_tokens[END_OF_TEXT]]
    parts: list[tuple[Sequence[int], bool]] = [(end, False)]  # tokens, and whether they count
    for role, content in turns:
        if template.begins[role]:
            parts.append(([special[template.begins[role]]], False))
        parts.append((tokenizer.encode(content), role == "assistant"))
        if role == "assistant":
            parts.append((end, True))
    counts = np.repeat([counted for _, counted in parts], [len(piece) for piece, _ in parts])
    return Example(np.array([i for piece, _ in parts for i in piece], dtype=np.int64), counts)


def _check_turns(turns: Sequence[Turn], template: Template) -> None:
    roles = [turn.role for turn in turns]
    if template.single and roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            f"data.template={template.name} has place for one prompt and one response, got turns of "
            f"{', '.join(roles)}; set data.template=chat"
        )


def prompt_ids(tokenizer: Tokenizer, turns: Sequence[Turn], template: Template) -> list[int]:
    """What the assistant's last turn answers, as generation reads it: the beginning of what `encode_turns` gives.

    Args:
        tokenizer: with the template's special tokens
        turns: of a whole record; the last is the assistant's, and is not read
        template: how turns become tokens
    """
    begin = template.begins["assistant"]
    ids = encode_turns(tokenizer, turns[:-1], template).ids.tolist()
    return ids + ([tokenizer.special_tokens[begin]] if begin else [])


def question_frame(tokenizer: Tokenizer, template: Template) -> tuple[list[int], list[int]]:
    """The ids before and behind what a user says, where the assistant's answer is to follow.

    Raises:
        ConfigError: if the tokenizer lacks special tokens of the template.
    """
    template.check_tokenizer(tokenizer)
    before, behind = (
        [tokenizer.special_tokens[template.begins[role]]] if template.begins[role] else []
        for role in ("user", "assistant")
    )
    return before, behind


def encode_pairs(
    tokenizer: Tokenizer,
    pairs: Sequence[Turns],
    template: Template,
    context: int,
    too_long: TooLong = "error",
    name: str = "pairs",
) -> list[Example]:
    """All records, encoded, none longer than the context.

    Args:
        tokenizer: with the template's special tokens
        pairs: as `read_pairs` gives them
        template: how turns become tokens
        context: the most inputs; a record has a token more, which is only predicted
        too_long: `error`; `drop`, which leaves longer records out; `truncate`, which cuts them at the left, as
            `truncate="left"` does in generation, but never into what the assistant says last
        name: of the file, for errors

    Raises:
        ConfigError: if the tokenizer lacks special tokens of the template.
        DataError: with the record, for what the template or the tokenizer cannot take, or what is too long.
    """
    examples = []
    for number, turns in enumerate(pairs, start=1):
        try:
            examples.append(encode_turns(tokenizer, turns, template))
        except DataError as error:
            raise DataError(f"{name}: record {number}: {error}") from error
    longer = [number for number, example in enumerate(examples) if example.num_inputs > context]
    return _shortened(examples, longer, context, too_long, name) if longer else examples


def _shortened(examples: list[Example], longer: list[int], context: int, too_long: TooLong, name: str) -> list[Example]:
    """The records, of which some are too long, as `too_long` says."""
    many = f"{name}: {len(longer):,} of {len(examples):,} records have more than the {context} tokens of the context"
    if too_long == "error":
        first = f"the first is record {longer[0] + 1} with {examples[longer[0]].num_inputs}"
        raise DataError(f"{many}, {first}; shorten them, or set data.too_long to drop or truncate")
    if too_long == "drop":
        notice(f"{many}: left out")
        fitting = [example for example in examples if example.num_inputs <= context]
        if not fitting:
            raise DataError(f"{name}: no record fits the context of {context} tokens; raise max_seq_len")
        return fitting
    cut = [Example(example.ids[-(context + 1) :], example.counts[-(context + 1) :]) for example in examples]
    for number in longer:
        if cut[number].counts.all():  # nothing of the prompt is left, and perhaps not the whole answer
            raise DataError(
                f"{name}: record {number + 1}: the response alone fills the context of {context} tokens; shorten it, "
                "or set data.too_long=drop"
            )
    notice(f"{many}: cut at the left")
    return cut
