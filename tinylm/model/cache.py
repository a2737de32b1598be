"""KVCache: keys and values of the tokens read so far, so that a new token does not recompute the earlier ones.

All rows have the same length, and tokens are never removed. `RingKVCache` (ring_cache.py) adds rows of
different lengths, a ring buffer for sliding windows, and truncation.
"""

import torch
from torch import Tensor

from tinylm.model.config import ModelConfig


class KVCache:
    """Keys and values of every layer, for up to `max_len` positions. For use without gradients.

    Args:
        config: the model's config
        batch_size: number of rows
        max_len: capacity in tokens. None: the model's context
        dtype: type of keys and values
        device: where they are stored

    Attributes:
        length: number of positions reserved
        keys: (layers, B, K, C, E), for C = max_len
        values: (layers, B, K, C, E)
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_len, self.batch_size, self.length = max_len or config.max_seq_len, batch_size, 0
        shape = (config.num_layers, batch_size, config.kv_heads, self.max_len, config.head_dim)
        self.keys, self.values = torch.zeros(2, *shape, dtype=dtype, device=device)

    def reserve(self, num_new: int) -> tuple[slice | Tensor, Tensor | None]:
        """Reserves the next positions. Returns them, and the positions of all keys (None: 0, 1, 2, ...)."""
        self.begin, self.length = self.length, self.length + num_new
        return slice(self.begin, self.length), None

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of one layer at the positions reserved by `reserve`.

        Args:
            layer: index of the layer
            key: (B, K, T, E)
            value: (B, K, T, E)

        Returns:
            all keys and all values of the layer so far, (B, K, S, E) each
        """
        self.keys[layer, :, :, self.begin : self.length] = key
        self.values[layer, :, :, self.begin : self.length] = value
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]
