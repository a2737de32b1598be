"""The log probability of each token of a prompt, with the most likely tokens in its place."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tinylm.errors import NumericError
from tinylm.evaluation.log_probs import double, evaluating
from tinylm.generation.sampling import CORRUPT
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart

PART = 128  # positions whose probabilities are computed at once


class Scored(NamedTuple):
    """A token with its log probability in nats, None for the first token of a text.

    Attributes:
        alternatives: the tokens with the highest probability in its place, most likely first
    """

    token: int
    log_prob: float | None
    alternatives: Sequence[tuple[int, float]]


def score(model: TransformerLM, ids: list[int], alternatives: int, separator: int | None) -> list[Scored]:
    """Scores every token of a text that fits the context.

    Args:
        model: the network
        ids: the tokens
        alternatives: how many of the most likely tokens to report
        separator: the end-of-text token, for a model that keeps documents within a text apart

    Raises:
        NumericError: if a log probability is NaN or infinite.
    """
    found = [Scored(ids[0], None, ())]
    inputs = torch.tensor([ids], device=model.embedding.weight.device)  # (1, T)
    with evaluating(model):
        logits = model(inputs, documents=documents_apart(model.config, inputs, separator))[0, :-1]  # (T - 1, V)
        for begin in range(0, len(logits), PART):
            log_probs = double(logits[begin : begin + PART]).log_softmax(dim=-1)
            targets = inputs[0, begin + 1 : begin + 1 + len(log_probs), None]
            own = log_probs.gather(1, targets)[:, 0]
            if not own.isfinite().all():
                raise NumericError(CORRUPT)
            values, tokens = log_probs.topk(alternatives, dim=-1)
            rows = zip(targets[:, 0].tolist(), own.tolist(), tokens.tolist(), values.tolist(), strict=True)
            found += [
                Scored(token, log_prob, tuple(zip(others, theirs, strict=True)))
                for token, log_prob, others, theirs in rows
            ]
    return found
