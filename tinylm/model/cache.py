"""KVCache: the keys and values of the tokens read so far, so that the next token costs one position and not all.

Memory is taken once, when the cache is made: 2 * layers * B * K * S * E numbers.
"""

import torch
from torch import Tensor

from tinylm.model.config import ModelConfig


class KVCache:
    """Room for the keys and values of up to `max_len` positions of every layer.

    Attributes:
        batch_size: rows
        length: how many positions are filled; the same for every row of the batch.
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
        self.max_len = config.max_seq_len if max_len is None else max_len
        self.batch_size = batch_size
        self.length = 0
        shape = (config.num_layers, batch_size, config.kv_heads, self.max_len, config.head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (layers, B, K, S, E)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new positions of one layer; `length` moves only with `advance`, when all layers have stored.

        Args:
            layer: which layer, from 0
            key: (B, K, T, E)
            value: (B, K, T, E)

        Returns:
            all keys and all values up to the new ones: (B, K, length + T, E) each, views
        """
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_positions: int) -> None:
        """Counts the positions that every layer has just stored."""
        self.length += num_positions

    def clear(self) -> None:
        """Forgets everything; the memory stays."""
        self.length = 0
