"""Properties of a causal attention head."""

import math

import torch
import torch.nn.functional as F


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    inf = float("inf")
    scores = torch.randn(2, 3, 4)
    query, key, value = torch.randn(3, 5, 16)
    x, weights = torch.randn(2, 6, 8), torch.randn(3, 4, 8) / 8**0.5
    by_hand = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    share = 1 / (1 + math.exp(-1 / math.sqrt(2)))  # scores 1/√2 and 0

    yield (
        "softmax of (0, log 3) is (1/4, 3/4)",
        torch.tensor([0.25, 0.75]),
        lambda: mine.softmax(torch.tensor([0.0, math.log(3)])),
        "exponentials, divided by their sum",
    )
    yield (
        "softmax works along the last axis, as PyTorch's does",
        scores.softmax(dim=-1),
        lambda: mine.softmax(scores.clone()),
        "sum(dim=-1, keepdim=True) keeps the axis, so that the division fits",
    )
    yield (
        "softmax of (1000, 1000) is (1/2, 1/2)",
        torch.tensor([0.5, 0.5]),
        lambda: mine.softmax(torch.tensor([1000.0, 1000.0])),
        "exp(1000) overflows; subtract the largest score first",
    )
    yield (
        "softmax gives -inf the weight 0",
        torch.tensor([1.0, 0.0]),
        lambda: mine.softmax(torch.tensor([2.0, -inf])),
        "exp(-inf) is 0; if all scores of the row were -inf there would be nothing to attend to",
    )
    yield (
        "no token attends to later ones",
        torch.zeros(5, 5),
        lambda: mine.attention_weights(query, key).triu(diagonal=1),
        "set the scores above the diagonal to -inf: `masked_fill` with `torch.ones(T, T).triu(1) == 1`",
    )
    yield (
        "each row of weights sums to 1",
        torch.ones(5),
        lambda: mine.attention_weights(query, key).sum(dim=-1),
        "mask the scores before the softmax, not the weights after it; and sum over the keys, the last axis",
    )
    yield (
        "if all keys are equal, a token attends to all it sees alike",
        torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None],
        lambda: mine.attention_weights(torch.randn(4, 3), torch.ones(4, 3)),
        "a token sees itself and all tokens before it",
    )
    yield (
        "the weights of the first two tokens of the chapter are (1, 0) and (0.67, 0.33)",
        torch.tensor([[1.0, 0.0], [share, 1 - share]]),
        lambda: mine.attention_weights(*by_hand),
        "the first token sees itself alone; the scores of the second are 1/√2 and 0",
    )
    yield (
        "the weights are PyTorch's at the width 16",
        F.scaled_dot_product_attention(query, key, torch.eye(5), is_causal=True),
        lambda: mine.attention_weights(query, key),
        "divide the products by √E, the square root of the width of the queries",
    )
    yield (
        "the results are those of PyTorch's attention",
        F.scaled_dot_product_attention(query, key, value, is_causal=True),
        lambda: mine.attend(query, key, value),
        "one matrix product: the rows of weights times the values",
    )
    yield (
        "a head of two texts is PyTorch's attention of the projections",
        F.scaled_dot_product_attention(*(x @ weight.T for weight in weights), is_causal=True),
        lambda: mine.head(x, *weights),
        "project by x @ W.T; transpose the last two axes of the keys only: key.transpose(-1, -2)",
    )
