"""The loss at each position of a sequence, which shows how much a model gains from the tokens before it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tinylm.evaluation.log_probs import double, evaluating, token_nats
from tinylm.model import TransformerLM


class PositionLoss(NamedTuple):
    """The loss by position, in nats per token."""

    mean: Tensor  # over the sequences, (T,)
    error: Tensor  # its standard error, (T,); NaN for a single sequence


def position_losses(
    model: TransformerLM, ids: Tensor, targets: Tensor, documents: Tensor | None = None, rows: int = 8
) -> PositionLoss:
    """The mean loss of the token after each position.

    Args:
        model: the network; it is run in evaluation mode
        ids: token ids, (N, T)
        targets: the tokens that follow, (N, T)
        documents: document numbers, (N, T), or None
        rows: sequences read at once
    """
    nats = []
    with evaluating(model):
        for begin in range(0, len(ids), rows):
            part = slice(begin, begin + rows)
            logits = model(ids[part], documents=None if documents is None else documents[part])
            nats.append(token_nats(double(logits), targets[part]).cpu())
    return summary(torch.cat(nats))


def summary(nats: Tensor) -> PositionLoss:
    """Mean and standard error over sequences: (N, T) -> (T,)"""
    count = len(nats)
    spread = nats.std(dim=0) if count > 1 else torch.full_like(nats[0], torch.nan)
    return PositionLoss(nats.mean(dim=0), spread / count**0.5)


def ranges(length: int) -> Iterator[tuple[int, int]]:
    """Ranges of positions, each twice as long as the one before: first and last position.

    >>> list(ranges(11))
    [(0, 0), (1, 1), (2, 3), (4, 7), (8, 10)]
    """
    begin, end = 0, 1
    while begin < length:
        yield begin, min(end, length) - 1
        begin, end = end, 2 * end
