"""Credit: which tokens of a completion are to blame for a mistake.

A verdict on a whole text blames all its tokens alike. If the mistake has a place, token m, a token before it is blamed
the less the earlier it was written, and a token after it not at all. So each token has its own return and its own
advantage: the return minus the mean over the completions of its group that had no mistake before this place. That
baseline does not depend on the token itself, except for its small share in the mean.

    G_t = -discount^(m - t) for t <= m; 0 for each token of a completion without a mistake
    A_t = (G_t - mean of G_t) / std        std: of the differences, over all tokens of the group

If all possible tokens of a place are known, no reward need be sampled there. A possible token has the reward 1, any
other 0, and the expected reward is the probability P_t of a possible one. Its gradient is the expected policy gradient
(Ciosek and Whiteson 2018). That of log P_t, which is maximized here, is the same divided by P_t, so that a place that
is wrong nearly always learns as quickly as others (Tajwar et al. 2026).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-6  # a standard deviation below this is rounding


def token_of(ids: Sequence[int], character: int, tokenizer: Any) -> int:
    """Index of the token that holds a character of a completion; `len(ids)` for a character beyond its end."""
    if not ids:
        return 0
    return bisect_right(range(1, len(ids) + 1), character, key=lambda count: len(tokenizer.decode(ids[:count])))


def returns(mistakes: Sequence[int | None], counts: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """The return of each token, and which tokens have one: those up to the mistake.

    Args:
        mistakes: index of the wrong token within each completion; None for a completion without a mistake
        counts: which tokens belong to the completions, bool (n, T)
        discount: weight of the blame, per token back from the mistake

    Returns:
        returns, float (n, T), and judged, bool (n, T)
    """
    tokens = counts.cumsum(1) - 1  # index within the completion
    found = torch.tensor([-1 if each is None else each for each in mistakes], device=counts.device)[:, None]
    right = found < 0
    left = found - tokens  # tokens left to the mistake
    judged = counts & (right | (left >= 0))
    return torch.where(right | ~judged, 0.0, -(discount ** left.clamp(min=0).float())), judged


def token_advantages(values: Tensor, judged: Tensor, group: int, scaled: bool) -> tuple[Tensor, Tensor]:
    """The advantage of each token within its group, 0 after a mistake.

    Args:
        values: returns, (B * G, T); the completions of a group follow each other and begin at the same token
        judged: which tokens have a return, bool (B * G, T)
        group: completions of a group, G
        scaled: whether to divide by the standard deviation over the tokens of the group

    Returns:
        advantages, (B * G, T), and 1 for each group without a difference, (B,)
    """
    width = values.shape[1]
    values, judged = values.view(-1, group, width), judged.view(-1, group, width)
    mean = values.sum(1, keepdim=True) / judged.sum(1, keepdim=True).clamp(min=1)
    above = torch.where(judged, values - mean, 0.0)
    scale = (above.square().sum((1, 2), keepdim=True) / judged.sum((1, 2), keepdim=True)).sqrt()
    silent = scale < SMALLEST
    above = torch.where(silent, 0.0, above / scale if scaled else above)
    return above.view(-1, width), silent[:, 0, 0].to(values)


def log_chances(logits: Tensor, possible: Sequence[Sequence[Sequence[int]]], counts: Tensor) -> Tensor:
    """The log probability that the next token is a possible one, 0 where nothing is known of it.

    Args:
        logits: of the prompts with completions, (n, T, V)
        possible: for each completion and each of its first tokens, the ids that are possible there
        counts: which tokens belong to the completions, bool (n, T)

    Returns:
        float (n, T)
    """
    known = torch.ones(logits.shape, dtype=torch.bool)
    for row, first in enumerate(counts.int().argmax(1).tolist()):
        for place, ids in enumerate(possible[row], start=first):
            if ids:
                known[row, place] = False
                known[row, place, list(ids)] = True
    return logits.log_softmax(2).masked_fill(~known.to(logits.device), -torch.inf).logsumexp(2)
