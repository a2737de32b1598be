"""Contracts of the parts of a network that a config may replace by a class (`class_path`, `init_args`).

No base class is needed: any class with these methods fits. `init_args` are passed by keyword after the arguments shown
here. Linear and Embedding layers inside a plug-in are initialized as the model's: N(0, 0.02), and a layer named
`output`, which writes to the residual stream, as a built-in one. Other parameters keep the values that the class gives
them.

A plug-in may also have these attributes, which tell tinylm what it cannot infer:

- `own_initialization = True`: the model leaves all weights of the plug-in as they are.
- `supports_cache = True`: a promise that text can be generated with a key/value cache. The output at a position depends
  on earlier positions only through the keys and values that were given to `cache.append`; for all parts but attention,
  on no other position at all. Without the promise the whole text is read again for each new token.
- `auxiliary_loss`: a scalar set by each forward pass in training, such as a load-balancing loss, in nats per token (the
  mean over the tokens read). It is added to the loss.
- `active_parameters`: how many of its parameters a token uses, for FLOP counts. Default: all.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from tinylm.model.cache import KVCache
from tinylm.model.config import ModelConfig


class AttentionPlugin(Protocol):
    """`model.network.attention`: `Class(config, layer, **init_args)`, a module in place of `Attention`.

    It may have two more members: `score_flops(visible)`, operations of a query's products with that many keys and
    values, forward, and the static method `cache_shape(config, **init_args) -> (heads, key_dim, value_dim)`, the shape
    of what it stores per token. Defaults: those of `Attention`, (K, E, E).
    """

    def __init__(self, config: ModelConfig, layer: int, **init_args: Any) -> None:
        """Creates the attention of one layer; `cache.append` takes the index `layer`."""
        ...

    def __call__(self, x: Tensor, visible: Any, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)

        Args:
            x: residual stream or its norm, (B, T, D)
            visible: True where a query sees a key, (T, S) or (B, 1, T, S); None: causal, or all for a single query
            rotary: rows of the rotary table for these positions, (2, T, R/2) or (2, B, T, R/2), or what a
                `PositionsPlugin` returns; None without rotary positions
            cache: stores keys and values, (B, heads, T, dim) each, by `append(layer, key, value)`, which returns those
                of all positions so far; None in training
        """
        ...


class FeedForwardPlugin(Protocol):
    """`model.network.feedforward`: `Class(config, **init_args)`, a module in place of `FeedForward` or `SwiGLU`."""

    def __init__(self, config: ModelConfig, **init_args: Any) -> None: ...

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ...


class NormPlugin(Protocol):
    """`model.network.norm`: `Class(width, **init_args)`, such as `torch.nn.RMSNorm`; queries and keys keep theirs."""

    def __init__(self, width: int, **init_args: Any) -> None: ...

    def __call__(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        ...


class ActivationPlugin(Protocol):
    """`model.network.activation` of the built-in `FeedForward`: a function, or `Class(**init_args)`, a module."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F)"""
        ...


class PositionsPlugin(Protocol):
    """`model.network.positional_encoding`: `Class(config, **init_args)`, a module."""

    def __init__(self, config: ModelConfig, **init_args: Any) -> None: ...

    def __call__(self, x: Tensor, positions: Tensor) -> tuple[Tensor, torch.Tensor | None]:
        """Adds positions to the embeddings, or passes something on to the attention of every layer.

        Args:
            x: embeddings, (B, T, D)
            positions: the position of each token, int64 (T,), or (B, T) where rows differ

        Returns:
            the embeddings, (B, T, D), and the argument `rotary` of attention
        """
        ...
