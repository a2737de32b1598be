"""The prompts of a request to OpenAI's API: texts, token ids and conversations, encoded and checked.

Roles are those of training: system (or developer), user and assistant. A message is text, or a list of parts of text.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from tinylm.data.chat_template import ChatTemplate
from tinylm.data.pairs import OTHER_ROLES, ROLES, Turn
from tinylm.data.template import Template, prompt_ids
from tinylm.errors import did_you_mean
from tinylm.generation.generate import Generator
from tinylm.serving.guard import Refused
from tinylm.serving.openai_fields import Fields

LONG = 4096  # characters; a longer text is encoded on a separate thread, so that other requests do not wait


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
        text: its text
        ids: what the model reads
        hidden: number of ids before those of the text
    """

    text: str
    ids: list[int]
    hidden: int = 0


async def read_prompts(fields: Fields, generator: Generator) -> list[Prompt]:
    """The prompts of `/v1/completions`: a string, token ids, or a list of either."""
    fields.known.add("prompt")
    given = fields.values.pop("prompt", "")
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refused(400, "prompt must be a string, a list of token ids, or a list of these", param="prompt")
    return [await _prompt(each, generator) for each in given]


async def _prompt(given: Any, generator: Generator) -> Prompt:
    tokenizer = generator.tokenizer
    if isinstance(given, str):
        ids = await _aside(given, lambda: generator.whole_prompt(given))
        if not ids:
            raise Refused(400, "prompt is empty, and this model has no token to begin a text with", param="prompt")
        return Prompt(given, _checked(ids, generator), len(tokenizer.opening) if given else len(ids))
    if not isinstance(given, list) or not given:
        raise Refused(400, "each prompt must be a string or a list of token ids that is not empty", param="prompt")
    for token in given:
        if type(token) is not int or not 0 <= token < tokenizer.vocab_size:
            found = str(token)[:40]
            raise Refused(400, f"a token id must be from 0 to {tokenizer.vocab_size - 1}, got {found}", param="prompt")
    return Prompt(tokenizer.decode(_checked(given, generator)), given)


async def _aside(text: str, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if len(text) < LONG else await asyncio.to_thread(encode)


def _checked(ids: list[int], generator: Generator) -> list[int]:
    """The ids of a prompt that fits the context."""
    context = generator.model.config.max_seq_len
    if len(ids) > context:
        problem = f"the prompt has {len(ids)} tokens, the context of the model holds {context}; shorten it"
        raise Refused(400, problem, param="prompt", code="context_length_exceeded")
    return ids


# --- conversations


async def read_conversation(
    fields: Fields, generator: Generator, template: Template | ChatTemplate | None, model: str
) -> Prompt:
    """The prompt of `/v1/chat/completions`."""
    messages = fields.take("messages", list, [])
    if template is None:
        problem = f"the model {model!r} was not trained on conversations; use /v1/completions"
        raise Refused(400, problem, param="model")
    if not messages:
        raise Refused(400, "messages must be a list of at least one message", param="messages")
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    tokenizer, answer = generator.tokenizer, Turn("assistant", "")
    text = "".join(turn.content for turn in turns)
    ids = await _aside(text, lambda: prompt_ids(tokenizer, [*turns, answer], template))
    return Prompt("", _checked(ids, generator), len(ids))


def _turn(message: Any, place: str) -> Turn:
    """A message, in which fields other than role and content must be empty."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(400, f"{place} must be an object with role and content", param=place)
    role = OTHER_ROLES.get(message["role"], message["role"])
    if role not in ROLES:
        known = did_you_mean(message["role"], ROLES) or f"; known are {', '.join(ROLES)}"
        raise Refused(400, f"{place}: the role {message['role']!r} is not supported{known}", param=f"{place}.role")
    for name, value in message.items():
        if name not in ("role", "content") and value:
            raise Refused(400, f"{place}.{name} is not supported by this server; leave it out", param=f"{place}.{name}")
    return Turn(role, _content(message.get("content"), f"{place}.content"))


def _content(content: Any, place: str) -> str:
    """The text of a message."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, f"{place} must be a string or a list of parts", param=place)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refused(400, f"{place}: parts other than text are not supported", param=place)
    return "".join(part["text"] for part in content)
