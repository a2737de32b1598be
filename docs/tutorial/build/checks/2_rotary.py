"""Properties of rotary positions."""

import math

import torch

from tinylm.model.positional import rotary_table, rotate


def library(x, theta=10000.0):
    """The rows of x, (T, E), at positions 0, 1, ..., rotated by tinylm."""
    T, E = x.shape
    return rotate(x.view(1, T, 1, E), rotary_table(T, E, theta)).view(T, E)


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    x = torch.randn(12, 8)
    query, key = torch.randn(2, 8)

    def product(query_position, key_position):
        turns = mine.angles(12, 8)
        turned = mine.rotate(query.repeat(12, 1), turns), mine.rotate(key.repeat(12, 1), turns)
        return turned[0][query_position] @ turned[1][key_position]

    yield (
        "the frequencies of the width 4 are 1 and 0.01",
        torch.tensor([1.0, 0.01]),
        lambda: mine.frequencies(4),
        "theta^(-2 i / width) for i = 0 and 1: 10000^0 and 10000^(-1/2)",
    )
    yield (
        "the frequencies of another width and theta are tinylm's",
        torch.atan2(*rotary_table(2, 16, 500.0)[:, 1].flip(0)).float(),
        lambda: mine.frequencies(16, 500.0),
        "theta is an argument; i runs over the pairs, of which there are half as many as coordinates",
    )
    yield (
        "the angles of three positions are (0, 0), (1, 0.01) and (2, 0.02)",
        torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]]),
        lambda: mine.angles(3, 4),
        "the angle is position times frequency; `torch.outer` gives all products; positions begin at 0",
    )
    yield (
        "(1, 0) turned by a right angle is (0, 1)",
        torch.tensor([[0.0, 1.0]]),
        lambda: mine.rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([[math.pi / 2]])),
        "mind the signs: (a cos t - b sin t, b cos t + a sin t)",
    )
    yield (
        "vectors at position 0 are not changed",
        x[:1],
        lambda: mine.rotate(x, mine.angles(12, 8))[:1],
        "the angles of position 0 are 0",
    )
    yield (
        "a rotation keeps the length of every vector",
        x.norm(dim=-1),
        lambda: mine.rotate(x, mine.angles(12, 8)).norm(dim=-1),
        "both halves of the result need both halves of x, as it was before",
    )
    yield (
        "a product depends on the distance only: 3 and 1, 10 and 8 give the same",
        (library(query.repeat(12, 1))[3] @ library(key.repeat(12, 1))[1]).repeat(2),
        lambda: torch.stack([product(3, 1), product(10, 8)]),
        "queries and keys turn by the same angles",
    )
    yield (
        "the result is that of tinylm's rotate",
        library(x),
        lambda: mine.rotate(x, mine.angles(12, 8)),
        "pair i is coordinates i and i + E/2, not 2 i and 2 i + 1: `x.chunk(2, dim=-1)` gives the two halves",
    )
    yield (
        "two texts at once are rotated like each by itself",
        torch.stack([library(x), library(-x)]),
        lambda: mine.rotate(torch.stack([x, -x]), mine.angles(12, 8)),
        "split along the last axis, dim=-1, so that others may come before it",
    )
