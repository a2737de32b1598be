"""An attention head: each token takes what it needs from the tokens before it (chapter 3)."""

from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    """exp(s_i) / (sum of exp(s_j)) over the last axis: numbers become weights that sum to one.

    Subtract the largest score of each row first. This changes no weight, and no exponential overflows.

    Args:
        scores: (..., S), some of them perhaps -inf

    Returns:
        (..., S)

    Example: the weights of (0, log 3) are (1/4, 3/4), and those of (1000, 1000) are (1/2, 1/2).
    """
    raise NotImplementedError


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q kᵀ / √E), where a token sees itself and the tokens before it.

    The scores of later tokens are set to -inf, so that the softmax makes their weights 0.

    Args:
        query: (..., T, E)
        key: (..., T, E)

    Returns:
        (..., T, T): in row i the weights of the query i on the keys

    Example: if all keys are equal, the rows of three tokens are (1, 0, 0), (1/2, 1/2, 0) and (1/3, 1/3, 1/3).
    """
    raise NotImplementedError


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The average of the values, weighted by the attention weights: (..., T, E) three times -> (..., T, E).

    Example: if all keys are equal, the results are the means of the first value, the first two, the first three ...
    """
    raise NotImplementedError


def head(x: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor) -> Tensor:
    """A whole head: projects every token to a query, a key and a value, and attends.

    Args:
        x: one vector for each token, (..., T, D)
        query_weight: W of y = x Wᵀ, as in `torch.nn.Linear`, (E, D)
        key_weight: (E, D)
        value_weight: (E, D)

    Returns:
        (..., T, E)
    """
    raise NotImplementedError
