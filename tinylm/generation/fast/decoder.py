"""Decoder: the model rearranged to read one token of each text quickly (layers.py).

A step multiplies a few vectors by every matrix. Most of its time goes into loading the weights and, in a small model,
into the overhead of each operation. Results differ from those of the modules by rounding only.

The decoder copies weights and is correct for standard models only (known.py). `make_decoder` checks this, and falls
back to an `UncachedDecoder` with a notice. `Generator` checks again before every text, so that changed weights, layers
and hooks are noticed; only writing into `weight.data` is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.generation.fast.cached import CachedDecoder
from tinylm.generation.fast.layers import Layer, Product, norm_function, position_rows
from tinylm.model import RingKVCache, TransformerLM
from tinylm.model.attention import visible_keys, visible_positions
from tinylm.model.normalization import widened
from tinylm.model.transformer import Block


class Decoder(CachedDecoder):
    """Reads one token of each row with the rearranged model. Arguments and errors are those of `CachedDecoder`."""

    def __init__(self, model: TransformerLM) -> None:
        super().__init__(model)
        config, device = model.config, model.embedding.weight.device
        self.device, self.dtype = device, model.embedding.weight.dtype
        parts = torch.get_num_threads() if device.type == "cpu" else 1
        self.embedding = model.embedding
        self.positions = position_rows(model)
        self.rotary = config.positional_encoding == "rotary"
        layers = [Layer(block, parts, config.rotary_dim) for block in model.blocks if isinstance(block, Block)]
        self.layers = list(zip(layers, model.windows, strict=True))
        self.windows = set(model.windows)
        self.final_norm = norm_function(model.final_norm)
        self.head = Product([model.head], parts)

    def step(self, ids: Tensor, cache: RingKVCache) -> Tensor:
        """Reads the next token of each row and returns the logits after it. Call it without gradients.

        Args:
            ids: int64 (B,)
            cache: keys and values of the tokens read so far, to which the new ones are appended

        Returns:
            (B, V), in at least float32
        """
        logits = self.read(ids, cache)
        self._end_documents(ids, cache)
        return logits

    def read(self, ids: Tensor, cache: RingKVCache) -> Tensor:
        """A `step` that does not look for the end of a document."""
        positions, keys = cache.reserve(1)
        masks = {window: self._mask(window, positions, keys) for window in self.windows}
        positions = positions if isinstance(positions, slice) else positions[:, 0]
        x, rotary = F.embedding(ids, self.embedding.weight), None  # (B, D)
        if self.positions is not None:
            rows = self.positions[positions]  # (B, ...), or (1, ...) for all
            if self.rotary:
                rotary = rows.unbind(1)
            else:
                x = (x + rows).type_as(x)
        for layer, window in self.layers:
            x = layer.forward(x, rotary, masks[window], cache)
        return widened(self.head.forward(self.final_norm(x)))

    def _mask(self, window: int | None, positions: slice | Tensor, keys: Tensor | None) -> Tensor | None:
        """Zero or -inf, to be added to the scores of the keys, (B, 1, 1, S) or (1, 1, 1, S); None for all zeros."""
        if isinstance(positions, slice):
            visible = visible_keys(1, positions.stop, window, None, self.device)  # (1, S)
            visible = None if visible is None else visible[None, None]
        else:
            assert keys is not None
            visible = visible_positions(positions, keys, window)  # (B, 1, 1, S)
        if visible is None:
            return None
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, float("-inf"))
