"""The weights of every matrix: their distribution and their singular values, layer by layer.

A matrix turns the unit ball into an ellipsoid whose half axes are its singular values. The stable rank is the sum of
their squares over the largest square: 1 if one direction dominates, the smaller side of the matrix if all are equal.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of
from tinylm.model import TransformerLM
from tinylm.model.quantized import QuantizedLinear

BINS = 60  # of the histogram of a matrix


@dataclass(frozen=True)
class Matrix:
    """One matrix of a network."""

    kind: str  # its name within its block, or within the network
    layer: int  # the block, from 0; -1 outside the blocks
    shape: tuple[int, int]
    std: float  # standard deviation of the weights
    largest: float  # the largest absolute value
    edges: Tensor  # edges of the histogram's bins, (BINS + 1,)
    density: Tensor  # share of the weights per unit of weight, (BINS,)
    singular: Tensor  # singular values, largest first, (min(shape),)

    @property
    def stable_rank(self) -> float:
        """The sum of the squared singular values over the largest squared."""
        squares = self.singular.square()
        return (squares.sum() / squares[0].clamp_min(1e-300)).item()


def matrices(model: TransformerLM) -> list[Matrix]:
    """All matrices, in the order of the network; a head that is tied to the embedding is left out."""
    return [describe(kind, layer, weight) for kind, layer, weight in _weights(model)]


def _weights(model: TransformerLM) -> Iterator[tuple[str, int, Tensor]]:
    linear = (nn.Linear, nn.Embedding, QuantizedLinear)
    seen: set[int] = set()
    for layer, module in [(-1, model), *enumerate(blocks_of(model))]:
        for name, each in module.named_modules():
            if not isinstance(each, linear) or (layer < 0 and name.startswith("blocks.")) or id(each.weight) in seen:
                continue
            if isinstance(each, nn.Linear | nn.Embedding):
                seen.add(id(each.weight))
            yield re.sub(r"\b\d+\b", "*", name), layer, each.weight.detach()  # experts.* is one kind


def describe(kind: str, layer: int, weight: Tensor) -> Matrix:
    """The statistics of one matrix."""
    weight = weight.double().cpu()
    rows, columns = weight.shape
    small = weight @ weight.T if rows <= columns else weight.T @ weight  # its eigenvalues are the squares
    singular = torch.linalg.eigvalsh(small).clamp_min(0).sqrt().flip(0)
    density, edges = torch.histogram(weight.flatten(), BINS, density=True)
    std, largest = weight.std(correction=0).item(), weight.abs().max().item()
    return Matrix(kind, layer, (rows, columns), std, largest, edges, density, singular)
