"""Decoder: the model rearranged to read one token of each text quickly (layers.py).

A step multiplies a few vectors by every matrix. Its time goes into loading the weights and, in a small model, into the
overhead of each operation. Results differ from the modules' by rounding alone.

The decoder copies weights and is right for standard models only (known.py). `make_decoder` checks this, and falls
back to an `UncachedDecoder` with a notice. `Generator` checks again before every text, so that changed weights, layers
and hooks are noticed; only writing into `weight.data` is not.
"""

import statistics
import time
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.errors import notice
from tinylm.generation.fast.cached import CachedDecoder, on_cuda, unsuited_part
from tinylm.generation.fast.layers import Layer, Product, norm_function, position_rows
from tinylm.generation.uncached import UncachedDecoder
from tinylm.known import check_deterministic
from tinylm.model import RingKVCache, TransformerLM
from tinylm.model.attention import visible_keys, visible_positions
from tinylm.model.normalization import widened
from tinylm.model.transformer import Block


def make_decoder(
    model: TransformerLM, earlier: "Decoder | UncachedDecoder | None" = None
) -> "Decoder | UncachedDecoder":
    """Makes a `Decoder` for a standard model, and an `UncachedDecoder`, with a notice, for any other.

    On CUDA it is a `GraphDecoder`, unless the model has quantized layers, LoRA adapters or an 8-bit cache. An `earlier`
    decoder of the model is returned if it is still valid. A model with dropout in training mode raises ConfigError.
    """
    check_deterministic(model)
    reason = unsuited_part(model)
    if reason is None:
        from tinylm.generation.fast.graph import GraphDecoder, uncapturable_part

        captured = on_cuda(model) and uncapturable_part(model) is None
        if isinstance(earlier, Decoder) and isinstance(earlier, GraphDecoder) == captured and earlier.is_current:
            return earlier
        return GraphDecoder(model) if captured else Decoder(model)
    if _announced.get(model) != reason:
        _announced[model] = reason
        notice(f"decoding without a cache, which is slower: {reason}")
    return earlier if isinstance(earlier, UncachedDecoder) else UncachedDecoder(model)


_announced: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()  # the reason given for each model


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


@torch.inference_mode()
def fastest_threads(model: TransformerLM, rows: int = 1) -> int:
    """Sets the number of PyTorch threads to the one that decodes fastest right now, and returns it.

    Small models decode best on few threads; and where another process uses a core, threads that wait for each other can
    take ten times as long. Powers of two up to the current number are tried for half a second. CPU only.
    """
    most, device = torch.get_num_threads(), next(model.parameters()).device
    if device.type != "cpu" or most == 1:
        return most
    counts = [*(1 << n for n in range((most - 1).bit_length())), most]
    decoders = {}
    for count in counts:
        torch.set_num_threads(count)
        decoders[count] = make_decoder(model)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    started = time.perf_counter()
    while not seconds[1] or (len(seconds[1]) < 30 and time.perf_counter() - started < 0.5):
        for count in counts:
            torch.set_num_threads(count)
            seconds[count] += step_seconds(decoders[count], model, rows)
    best = min(counts, key=lambda count: statistics.median(seconds[count]))
    torch.set_num_threads(best)
    return best


@torch.inference_mode()
def step_seconds(
    decoder: Decoder | UncachedDecoder, model: TransformerLM, rows: int = 1, steps: int = 7
) -> list[float]:
    """Measures some steps in the middle of the context, in seconds, after one to warm up."""
    ids, seconds = torch.zeros(rows, dtype=torch.long), []
    cache: Any = decoder.make_cache(rows)
    cache.truncate([cache.max_len // 2] * rows)  # pretends that so many tokens have been read
    for _ in range(min(steps + 1, cache.max_len - cache.max_len // 2)):
        started = time.perf_counter()
        decoder.step(ids, cache)
        seconds.append(time.perf_counter() - started)
    return seconds[1:] or seconds
