"""The surprise of a model at each token of a text, beside the token's true probability.

The truth is known where a grammar generated the text. Even a predictor that knew the grammar would be surprised by
every free choice, by -log of its probability; a model could learn to avoid only the loss beyond that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tinylm.data.grammar.parse import Grammar, split_words
from tinylm.errors import DataError
from tinylm.evaluation.tokens import token_losses
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Surprise:
    """A token of a text, and how unexpected it was."""

    id: int
    model: float  # -log of the model's probability, in nats
    truth: float  # -log of the true probability, in nats


def token_truths(grammar: Grammar, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """-log of the true probability of every token of a text, given those before it: float64 (n,), in nats.

    The probability of a token is the probability of all words that begin with the word's tokens up to it. If a word is
    also the beginning of longer words, only the next token shows that it has ended. Together, the tokens of a text and
    its end therefore have the probability of the text.

    Raises:
        DataError: if the grammar does not generate the text, or a token spans several words.
    """
    encode = cache(lambda word: tuple(tokenizer.encode(word)))
    words = split_words(text)
    if [token for word in words for token in encode(word)] != tokenizer.encode(text):
        raise DataError("a token of this tokenizer spans several words, so its true probability is not computed")
    nats: list[float] = []
    before = 1.0  # probability of the tokens so far, given the words before this one
    for word, found in zip(words, grammar.word_probabilities(text), strict=False):  # at the end there is no token
        ids, whole = encode(word), found[word]
        for count in range(1, len(ids) + 1):
            found = {each: share for each, share in found.items() if encode(each)[:count] == ids[:count]}
            now = math.fsum(found.values())
            nats.append(max(0.0, math.log(before / now)))  # not below zero by rounding
            before = now
        before /= whole  # above 1 if longer words begin with this one
    return np.array(nats)


def surprises(model: TransformerLM, tokenizer: Tokenizer, grammar: Grammar, text: str) -> list[Surprise]:
    """Model and truth at every token of a text that the model predicts."""
    truths = token_truths(grammar, tokenizer, text)
    losses = token_losses(model, tokenizer, text)
    return [
        Surprise(each.id, each.nats, float(truth))
        for each, truth in zip(losses, truths, strict=True)
        if each.nats is not None
    ]


def choices(found: Sequence[Surprise], least: float = 0.1) -> list[int]:
    """The indices of tokens at which the loss of model or truth is at least `least` nats."""
    return [place for place, each in enumerate(found) if max(each.model, each.truth) >= least]
