"""Reads preferences: a prompt with a chosen and a rejected response, in the formats of TRL.

    {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    {"prompt": [{"role": "user", "content": "2+2="}], "chosen": [{"role": "assistant", "content": "4"}], ...}
    {"chosen": [user, assistant], "rejected": [user, assistant]}      the prompt is the turns that both begin with

Both responses are encoded by the template of pairs, and only their own tokens count. Left out: two texts without a
prompt, since their common beginning need not end where the responses begin.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinylm.data.chat_template import ChatTemplate
from tinylm.data.pairs import Turn, Turns, fail, read_records, turns_of
from tinylm.data.records import shown
from tinylm.data.template import Example, Preferred, Template, TooLong, encode_turns, naming, prompt_ids, shortened
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import Tokenizer

CHOICE = ("chosen", "rejected")


class Preference(NamedTuple):
    """Two conversations, with the same turns before the responses."""

    chosen: Turns
    rejected: Turns

    @property
    def prompt(self) -> Turns:
        """The turns that both begin with."""
        same = [ours == theirs for ours, theirs in zip(*self, strict=False)]
        return self.chosen[: same.index(False) if False in same else len(same)]


def holds_preferences(path: str | Path) -> bool:
    """Whether the first record of a file is a preference. Errors are those of `read_pairs`."""
    with closing(read_records(path)) as records:
        record, _ = next(records, ({}, ""))
    return isinstance(record, dict) and {name.strip().lower() for name in record}.issuperset(CHOICE)


def read_preferences(path: str | Path) -> list[Preference]:
    """The preferences of a file, in order. Formats of files and errors are those of `read_pairs`."""
    return [_preference(record, place) for record, place in read_records(path)]


def _preference(record: Any, where: str) -> Preference:
    names = {name.strip().lower(): value for name, value in record.items()} if isinstance(record, dict) else {}
    for name in CHOICE:
        if name not in names:
            fail(where, f"has no {name}; every record of preferences has prompt, chosen and rejected")
    found = Preference(*(_side(names, name, where) for name in CHOICE))
    if found.chosen == found.rejected:
        fail(where, "has the same response as chosen and as rejected; remove the record")
    for turns in found:
        if [turn.role for turn in turns[len(found.prompt) :]][:1] != ["assistant"]:
            fail(where, "has different prompts before chosen and rejected; the two may differ in the responses only")
    return found


def _side(record: dict[str, Any], name: str, where: str) -> Turns:
    """The conversation with the chosen or the rejected response."""
    prompt, response = record.get("prompt"), record[name]
    if not isinstance(response, str | list):
        fail(where, f"{name} must be a text or a list of messages, got {shown(response)}")
    alone = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    turns = turns_of({"messages": alone}, where, None)
    if turns[0].role != "assistant":  # the whole conversation
        if prompt is not None and prompt not in [turn.content for turn in turns]:
            fail(where, f"{name} has turns before the response, and prompt is not one of them; leave prompt out")
        return turns
    if not isinstance(prompt, str | list) or not prompt:
        fail(where, f"prompt must be a text or a list of messages, got {shown(prompt)}")
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return turns_of({"messages": [*before, *alone]}, where, None)


def encode_preferences(
    tokenizer: Tokenizer,
    preferences: Sequence[Preference],
    template: Template | ChatTemplate,
    context: int,
    too_long: TooLong = "error",
    name: str = "preferences",
) -> list[Example]:
    """Encodes preferences: the example of each chosen response, with the example of the rejected one.

    The arguments and errors are those of `encode_pairs`. `too_long` refers to the longer response. It cannot be
    `truncate`, which would cut the same prompt at two places.
    """
    if too_long == "truncate":
        raise ConfigError("data.too_long: truncate would cut the same prompt at two places; use error or drop")
    examples: list[Example] = []
    for number, preference in enumerate(preferences, start=1):
        with naming(f"{name}: record {number}"):
            chosen, rejected = (_encoded(tokenizer, turns, preference.prompt, template) for turns in preference)
        examples.append(Preferred.over(chosen, rejected))
    return shortened(examples, context, too_long, name)


def _encoded(tokenizer: Tokenizer, turns: Turns, prompt: Turns, template: Template | ChatTemplate) -> Example:
    """The tokens of a conversation; those after the prompt count."""
    before = prompt_ids(tokenizer, [*prompt, Turn("assistant", "")], template)
    ids, counts = encode_turns(tokenizer, turns, template)
    if ids[: len(before)].tolist() != before:
        raise DataError("the chat template writes the prompt differently before this response; remove the record")
    return Example(ids, counts & (np.arange(len(ids)) >= len(before)))
