"""KVCache: the keys and values of earlier tokens, so that a new token computes its own position only."""

import numpy as np


class KVCache:
    """The keys and values of every attention layer, by the layer's name."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def length(self) -> int:
        """The number of positions held."""
        return next(iter(self._layers.values()))[0].shape[1] if self._layers else 0

    def append(self, name: str, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds the new positions of a layer, (B, T, K, E) each, and returns all its keys and values, (B, S, K, E)."""
        if name in self._layers:
            earlier_key, earlier_value = self._layers[name]
            key, value = np.concatenate((earlier_key, key), axis=1), np.concatenate((earlier_value, value), axis=1)
        self._layers[name] = key, value
        return key, value
