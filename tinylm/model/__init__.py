"""The transformer, in pure PyTorch. Text, training and files are elsewhere.

Axes, wherever a shape is given:

    B batch                 H query heads           F feed-forward width
    T query position        K key/value heads       V vocabulary
    S key position          E head dimension        D model width

Read in this order: config, normalization, positional, attention, feedforward, transformer, cache. The other files
are optional parts: caches for many rows and in 8 bits (ring_cache, int8_cache), quantized and LoRA layers (quantized,
lora), sizes (size), and the contracts of plug-ins (plugin).
"""

from tinylm.model.cache import KVCache
from tinylm.model.config import PRESETS, ModelConfig, RopeScaling, preset
from tinylm.model.int8_cache import Int8KVCache
from tinylm.model.ring_cache import RingKVCache
from tinylm.model.size import flops_per_token, parameter_count
from tinylm.model.transformer import Block, TransformerLM

__all__ = [
    "PRESETS",
    "Block",
    "Int8KVCache",
    "KVCache",
    "ModelConfig",
    "RingKVCache",
    "RopeScaling",
    "TransformerLM",
    "flops_per_token",
    "parameter_count",
    "preset",
]
