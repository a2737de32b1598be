"""KVCache: the keys and values of the tokens read so far, so that the next token costs one position and not all."""

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array


class KVCache:
    """Room for the keys and values of a whole context of every layer; all rows are equally long.

    Args:
        config: of the network
        batch_size: rows
        dtype: of the keys and values

    Attributes:
        length: how many positions are filled
    """

    def __init__(self, config: Config, batch_size: int, dtype: np.dtype) -> None:
        shape = (config.num_layers, batch_size, config.max_seq_len, config.kv_heads, config.head_dim)
        self.keys, self.values = np.empty(shape, dtype), np.empty(shape, dtype)
        self.length = 0

    def append(self, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        """Stores the new positions of a layer, (B, T, K, E) each; `length` grows when all layers have.

        Returns:
            all keys and all values, (B, S, K, E) each
        """
        end = self.length + key.shape[1]
        for stored, new in ((self.keys, key), (self.values, value)):
            stored[layer, :, self.length : end] = new
        return self.keys[layer, :, :end], self.values[layer, :, :end]
