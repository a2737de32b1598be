"""The embeddings of tokens in two dimensions, and the nearest neighbours of each.

Principal component analysis: the two directions in which the vectors differ most, from the singular value decomposition
of the vectors less their mean. Neighbours are those with the greatest cosine in all dimensions, since two dimensions
may hide the differences between tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.checks import require


@dataclass(frozen=True)
class EmbeddingMap:
    """Tokens in two dimensions."""

    ids: Tensor  # the tokens, (n,)
    points: Tensor  # their coordinates, (n, 2)
    shares: Tensor  # share of the variance along each, (2,)
    neighbours: Tensor  # ids of the nearest tokens, nearest first, (n, k)
    cosines: Tensor  # of the angles to them, (n, k)


def embedding_map(weight: Tensor, ids: Tensor, neighbours: int = 3) -> EmbeddingMap:
    """Maps some rows of an embedding.

    Args:
        weight: one row for each token, (V, D)
        ids: tokens to map, (n,), n at least 3
        neighbours: number of nearest tokens to find, among `ids`; at most n - 1

    Raises:
        ConfigError: if there are fewer than three tokens.
    """
    require(len(ids) >= 3, f"a map needs three different tokens at least, got {len(ids)}; give a longer text")
    vectors = weight.detach()[ids].double().cpu()
    centred = vectors - vectors.mean(dim=0)  # (n, D)
    points, shares = principal_components(centred)
    directions = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = (directions @ directions.T).fill_diagonal_(-torch.inf)  # (n, n)
    nearest = cosines.topk(min(neighbours, len(ids) - 1))
    return EmbeddingMap(ids, points, shares, ids.cpu()[nearest.indices], nearest.values)


def principal_components(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along the two directions of greatest variance, and the share of each: (n, D) -> (n, 2), (2,)

    The sign of a direction is arbitrary; the largest coordinate along each is positive.
    """
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * sizes[:2]
    largest = points.gather(0, points.abs().argmax(dim=0, keepdim=True))  # (1, 2)
    points = points * torch.where(largest < 0, -1.0, 1.0)
    shares = sizes.square() / sizes.square().sum().clamp_min(1e-300)
    pad = 2 - points.shape[1]  # of a width of one
    return torch.nn.functional.pad(points, (0, max(pad, 0))), torch.nn.functional.pad(shares[:2], (0, max(pad, 0)))
