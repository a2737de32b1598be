"""Int8KVCache: a key/value cache in a quarter of the memory."""

import torch
from torch import Tensor

from tinylm.model.ring_cache import RingKVCache


class Int8KVCache(RingKVCache):
    """A cache of 8-bit integers: each key and each value vector is stored as integers from -127 to 127 and one scale.

    No coordinate moves by more than half a step, 1/254 of the largest coordinate of its vector. All keys and values are
    dequantized for every token, so memory is saved at the price of time. `keys` and `values` hold the integers.
    """

    def _allocate(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
        """Integers of keys and values, then their scales."""
        codes = super()._allocate(shapes, torch.int8, device)
        return codes + super()._allocate([(*shape[:-1], 1) for shape in shapes], dtype, device)

    def _store(self, kind: int, layer: int, new: Tensor) -> Tensor:
        scales = (new.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=torch.finfo(new.dtype).tiny)
        codes = (new / scales).round().to(torch.int8)
        scales = self._put(kind + 2, layer, scales)
        return self._put(kind, layer, codes).to(scales.dtype) * scales
