"""Dropout (Srivastava et al. 2014), by masks that are drawn for a whole batch before anything is computed."""

from collections.abc import Callable

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array

Masks = dict[str, Array]


def dropout(x: Array, mask: Array | None) -> tuple[Array, Callable]:
    """y = x * mask, where the mask is 0 or 1/(1 - p), and None where nothing is dropped. Backward: dx = dy * mask."""
    if mask is None:
        return x, lambda dy: dy
    return x * mask, lambda dy: dy * mask


def draw_masks(config: Config, shape: tuple[int, ...], random: np.random.Generator, dtype: np.dtype) -> Masks:
    """Masks of dropout for a batch (B, T): 0 with probability p, else 1/(1 - p), so that the mean stays.

    Returns:
        `embedding`, `blocks.0.attention` and `blocks.0.feedforward` (B, T, D), `blocks.0.attention.weights`
        (B, H, T, T), and so on for all layers; nothing where p is 0
    """
    B, T = shape
    p = config.dropout

    def draw(*shape: int) -> Array:
        return (random.random(shape, np.float32) >= p) / dtype.type(1 - p)

    if p == 0:
        return {}
    masks = {"embedding": draw(B, T, config.d_model)}
    for layer in range(config.num_layers):
        masks[f"blocks.{layer}.attention.weights"] = draw(B, config.num_heads, T, T)
        masks[f"blocks.{layer}.attention"] = draw(B, T, config.d_model)
        masks[f"blocks.{layer}.feedforward"] = draw(B, T, config.d_model)
    return masks
