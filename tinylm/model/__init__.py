"""The network. Pure PyTorch: it knows nothing of text, training or files.

Axes, wherever a shape is given:

    B batch                 H query heads           F feed-forward width
    T query position        K key/value heads       V vocabulary
    S key position          E head width            D model width (H * E)

Read in this order: config, normalization, positional, attention, feedforward, transformer, cache.
"""

from tinylm.model.cache import Int8KVCache, KVCache
from tinylm.model.config import PRESETS, ModelConfig, flops_per_token, parameter_count, preset
from tinylm.model.transformer import Block, TransformerLM

__all__ = [
    "PRESETS",
    "Block",
    "Int8KVCache",
    "KVCache",
    "ModelConfig",
    "TransformerLM",
    "flops_per_token",
    "parameter_count",
    "preset",
]
