"""Rewards that a program checks: `parse`, `exact`, or a function of the user's.

A reward that knows more than a verdict on the whole text is an object with one of these methods, or both:

    mistake(prompt, completion, answer) -> int | None
    possible_tokens(prompt, ids, tokenizer) -> list[list[int]]

`mistake` gives the index of the character of the completion with which the text goes wrong, `len(completion)` if it
ends too early, and None if there is no mistake. `possible_tokens` gives, for each token of a completion up to its first
wrong one, all ids that are no mistake in its place. A validation asks for the reward alone, which should be 1 without a
mistake, else 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tinylm.checks import require
from tinylm.data.grammar.next_tokens import NextTokens
from tinylm.errors import ConfigError, did_you_mean
from tinylm.plugins import Part
from tinylm.training.objective import FIELD

Reward = Callable[[str, str, str | None], float]  # of a prompt, a completion, and the expected answer if there is one
NAMES = ("parse", "exact")
OPTION = f"{FIELD}: reward"


class Parse:
    """The reward `parse` is 1 if a grammar can generate prompt and completion, else 0.

    Args:
        grammar: the Grammar
    """

    def __init__(self, grammar: Any) -> None:
        self.grammar = grammar
        self._next: NextTokens | None = None

    def __call__(self, prompt: str, completion: str, answer: str | None = None) -> float:
        """The reward of a completion."""
        return float(bool(self.grammar.parse(prompt + completion)))

    def mistake(self, prompt: str, completion: str, answer: str | None = None) -> int | None:
        """Index of the first character of the completion that no generated text has there; None if it parses."""
        place = self.grammar.mistake(prompt + completion)
        return None if place is None else max(0, place - len(prompt))

    def possible_tokens(self, prompt: str, ids: Sequence[int], tokenizer: Any) -> list[list[int]]:
        """The ids that some text of the grammar has in place of each token, up to the first wrong one.

        Raises:
            ConfigError: if the bytes of the tokens do not make up the text.
        """
        if self._next is None:
            specials = tokenizer.special_tokens.values()
            self._next = NextTokens(self.grammar, tokenizer.token_bytes, specials, tokenizer.end_of_text)
        own = [number for number in ids if number != tokenizer.end_of_text]
        spelled = b"".join(tokenizer.token_bytes[number] for number in own).decode(errors="replace")
        problem = f"{OPTION}: the text is not the bytes of its tokens with this tokenizer; set credit to mistake"
        require(spelled == tokenizer.decode(own), problem)
        return self._next.along(prompt, ids)


def own_reward(given: Any) -> Part | None:
    """The plug-in of a reward; None if it is the name of one of ours.

    Raises:
        ConfigError: if it is neither.
    """
    if not isinstance(given, str) or "." in given:
        return Part.of(given, OPTION)
    if given not in NAMES:
        hint = did_you_mean(given, NAMES) or f", known are {', '.join(NAMES)}"
        raise ConfigError(f"reward: no reward {given!r}{hint}; a function of your own is named with its module")
    return None


def named_reward(name: str, network: Any) -> Reward:
    """The reward of a name for the data of a run.

    Args:
        name: `parse`: 1 if the grammar of the corpus can generate the text; `exact`: 1 if the completion is the
            response of the pair, apart from white space around it
        network: the LitTransformerLM

    Raises:
        ConfigError: if the data have no grammar, or no responses.
    """
    pairs = network.template is not None
    if name == "exact":
        require(pairs, f"{OPTION}: exact compares with the responses of data.pairs; give them")
        return lambda prompt, completion, answer: float(completion.strip() == (answer or "").strip())
    grammar: Any = None if pairs else getattr(network.trainer.datamodule.corpus, "grammar", None)
    require(grammar is not None, f"{OPTION}: parse needs a corpus that a grammar generates, such as stories")
    return Parse(grammar)
