"""A sampler: from logits to one token, with temperature, top-k and top-p (chapter 7)."""

import torch
from torch import Tensor


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature, which is above 0: (V,) -> (V,).

    Example: (1, 2) at the temperature 0.5 become (2, 4).
    """
    return logits / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest logits, or all if there are fewer; the others become -inf: (V,) -> (V,).

    Example: of (0, 3, 1, 2) the top 2 are (-inf, 3, -inf, 2).
    """
    smallest = logits.topk(min(k, len(logits))).values[-1]
    return logits.masked_fill(logits < smallest, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most likely tokens whose probabilities sum to at least p: (V,) -> (V,).

    The token whose probability takes the sum to p or beyond is kept; the logits of those after it become -inf.

    Example: of the probabilities (0.2, 0.5, 0.3) and p = 0.6, the tokens 1 and 2 are kept: 0.5 < 0.6, 0.8 >= 0.6.
    """
    probabilities, order = logits.softmax(dim=-1).sort(descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # the sum of all more likely tokens
    excluded = torch.zeros_like(logits, dtype=torch.bool)
    excluded[order] = before >= p
    excluded[order[0]] = False
    return logits.masked_fill(excluded, float("-inf"))


def choose(probabilities: Tensor, u: float) -> int:
    """The token at u, where the probabilities lie side by side from 0 to 1: the first whose cumulative sum exceeds u.

    If u is a random number, each token is drawn with its probability.

    Args:
        probabilities: (V,)
        u: at least 0, less than 1

    Example: of (1/4, 1/2, 1/4), the token is 0 for u below 1/4, 1 from 1/4 to below 3/4, and 2 from 3/4 on.
    """
    return int((probabilities.cumsum(dim=-1) > u).int().argmax())


def sample(logits: Tensor, u: float, temperature: float = 1.0, k: int | None = None, p: float | None = None) -> int:
    """Chooses a token: temperature first, then top-k, then top-p, then `choose`.

    Args:
        logits: (V,)
        u: random number, at least 0, less than 1
        temperature: 0 takes the most likely token, whatever u is
        k: of top-k. None: no such filter
        p: of top-p. None: no such filter
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = apply_temperature(logits, temperature)
    if k is not None:
        logits = top_k(logits, k)
    if p is not None:
        logits = top_p(logits, p)
    return choose(logits.softmax(dim=-1), u)
