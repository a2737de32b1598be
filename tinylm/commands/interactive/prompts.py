"""The fit of a prompt to the training text, by the model's own loss on it.

A model continues texts like those it has seen. The loss of a prompt, in nats per token, shows whether it has seen such
texts: for the validation text it is about the validation loss, and for random tokens ln V, with V tokens in the
vocabulary. A prompt is unlike the training text if its loss exceeds the middle between the two. The mean of a few
tokens proves little, so n tokens must also exceed the validation loss by `SPREAD` / sqrt(n), three standard errors if
the loss of single tokens has a standard deviation of 3 nats.

In a conversation, the model has learned only the answers, so the loss of a user's message means nothing.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tinylm.errors import TinyLMError
from tinylm.evaluation.log_probs import token_log_probs
from tinylm.generation.generate import Generator

SPREAD = 9.0  # nats
LONGEST = 60  # characters of a suggestion


class Fit(NamedTuple):
    """The loss of a prompt beside that of the validation text.

    Attributes:
        tokens: number of predicted tokens
        loss: their mean loss in nats
        usual: the validation loss in nats per token
        limit: the largest loss of a prompt like the training text
    """

    tokens: int
    loss: float
    usual: float
    limit: float

    @property
    def unlike(self) -> bool:
        """Whether the prompt is unlike the training text."""
        return self.loss > self.limit


def fit_of(generator: Generator, ids: list[int], info: dict[str, Any]) -> Fit | None:
    """The fit of a prompt; None if nothing in it is predicted, or the validation loss is unknown.

    Args:
        generator: has the model
        ids: the ids of the prompt
        info: the recorded values of the model, with `val/loss`
    """
    usual = info.get("val/loss")
    if not isinstance(usual, float) or not math.isfinite(usual) or len(ids) < 2 or generator.conversation:
        return None
    tokenizer = generator.tokenizer
    (found,) = token_log_probs(generator.model, [np.array(ids)], separator=tokenizer.end_of_text)
    tokens = len(found.log_probs)
    limit = max((usual + math.log(tokenizer.vocab_size)) / 2, usual + SPREAD / math.sqrt(tokens))
    return Fit(tokens, -float(found.log_probs.mean()), usual, limit)


def describe(fit: Fit, beginning: str | None) -> str:
    """The line for a prompt that is unlike the training text."""
    known = f"; a beginning that the model knows: {beginning}" if beginning else ""
    found = f"{fit.loss:.1f} nats per token, validation text {fit.usual:.2f}"
    return f"this prompt is unlike the training text ({found}){known}"


def known_beginning(generator: Generator, info: dict[str, Any]) -> str | None:
    """A prompt that the model continues well: the sample prompt of its run, or the beginning of a text of its own."""
    try:
        found = str(info.get("prompt") or "")
        if not found and generator.tokenizer.end_of_text is not None:
            found = generator.generate("", temperature=0.0, max_new_tokens=8)
        found = next(filter(None, map(str.strip, found.splitlines())), "")
        found = found if len(found) <= LONGEST else found[:LONGEST].rpartition(" ")[0]
        fit = fit_of(generator, generator.prompt_ids(found), info) if found else None
    except TinyLMError:
        return None
    return None if fit is not None and fit.unlike else found or None
