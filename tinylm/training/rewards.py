"""Rewards that a program checks: `parse`, `exact`, or a function of the user's."""

from collections.abc import Callable
from typing import Any

from tinylm.checks import require
from tinylm.errors import ConfigError, did_you_mean
from tinylm.plugins import Part
from tinylm.training.objective import FIELD

Reward = Callable[[str, str, str | None], float]  # of a prompt, a completion, and the expected answer if there is one
NAMES = ("parse", "exact")
OPTION = f"{FIELD}: reward"


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
    return lambda prompt, completion, answer: float(bool(grammar.parse(prompt + completion)))
