"""CompiledDecoder: one decoding step of the modules, compiled by `torch.compile` with the weights as constants."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinylm.errors import ConfigError
from tinylm.generation.fast.cached import CachedDecoder
from tinylm.model import RingKVCache, TransformerLM
from tinylm.model.attention import Attention, attend_plain
from tinylm.model.quantized import aligned


class CompiledDecoder(CachedDecoder):
    """Reads one token of each row with a compiled program.

    One program serves all lengths: it reads the filled slots of the cache, rounded up to a block. Compiling takes half
    a minute or more for each number of rows, at the first step, and needs a C++ compiler: without one the step raises
    ConfigError. Use it in `torch.inference_mode`, with cache and ids made there too. Arguments and errors are those of
    `CachedDecoder`.
    """

    fixed_rows: ClassVar = True
    BLOCK: ClassVar = 32  # slots are read in multiples of this
    OPTIONS: ClassVar[dict[str, Any]] = {
        "freezing": True,  # weights are constants, so kernels may choose their layout
        "max_autotune": True,  # generated kernels for the products, where they are faster
        "max_autotune_gemm_backends": "CPP,ATEN",
        "autotune_num_choices_displayed": 0,
        "fx_graph_cache": False,  # it confuses models of equal shape but different constants
    }

    def __init__(self, model: TransformerLM) -> None:
        if model.cache_type is not RingKVCache:
            raise ConfigError("compiled decoding does not support an 8-bit cache; use one of the two")
        super().__init__(model)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = aligned(tensor.data)  # Inductor ignores the storage offset of a constant
        self._weights, self._versions = self._snapshot()
        self._run = torch.compile(_Step(model), dynamic=False, fullgraph=True)
        self._compiled: set[int] = set()  # numbers of rows

    def step(self, ids: Tensor, cache: RingKVCache) -> Tensor:
        """Reads the next token of each row, (B,), and returns the logits after it, (B, V), in at least float32."""
        lengths = torch.tensor(cache.lengths, device=ids.device)[:, None]
        filled = max(cache.lengths) // self.BLOCK * self.BLOCK + self.BLOCK
        slots = torch.arange(min(filled, cache.num_slots), device=ids.device)
        starts = None
        if self.model.config.document_mask:  # even for a single document, so that one program serves all texts
            starts = torch.tensor([begins[-1] for begins in cache.begins], device=ids.device)[:, None]
        if len(ids) not in self._compiled:
            self._compile(ids, lengths, slots[: self.BLOCK], starts, cache)
            self._compiled.add(len(ids))
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # model and cache are known to be the same
            logits = self._run(ids, cache.keys, cache.values, lengths, slots, starts)
        cache.advance(1)
        self._end_documents(ids, cache)
        return logits

    def _compile(self, ids: Tensor, lengths: Tensor, slots: Tensor, starts: Tensor | None, cache: RingKVCache) -> None:
        """Compiles by running one step, which writes only where the real step writes; its result is dropped."""
        import torch._inductor.config as inductor  # takes a second to import
        from torch._dynamo import mark_dynamic
        from torch._dynamo.exc import BackendCompilerFailed

        if len(slots) < cache.num_slots:
            mark_dynamic(slots, 0)
        output = contextlib.redirect_stderr(io.StringIO())  # of autotuning
        try:
            with inductor.patch(self.OPTIONS), warnings.catch_warnings(), output, _plain_attention(self.model):
                warnings.simplefilter("ignore")
                self._run(ids, cache.keys, cache.values, lengths, slots, starts)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise ConfigError(
                f"a step cannot be compiled ({reason}); install a C++ compiler, or omit --compile"
            ) from error


class _Step(nn.Module):
    def __init__(self, model: TransformerLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *cache: Any) -> Tensor:
        return self.model(ids[:, None], cache=StaticCache(*cache))[:, -1]


@contextlib.contextmanager
def _plain_attention(model: TransformerLM) -> Iterator[None]:
    """Makes a model use the plain formula, which Inductor compiles to faster code for a single query."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    kernels = [layer.attend for layer in layers]
    for layer in layers:
        layer.attend = attend_plain
    try:
        yield
    finally:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.attend = kernel


class StaticCache(RingKVCache):
    """The memory of a `RingKVCache` during one step, in shapes that do not depend on the lengths of the rows.

    It is created for each token from tensors alone, as a compiled step requires.

    Args:
        keys: of a `RingKVCache`
        values: of the same cache
        lengths: of its rows, int64 (B, 1), which are the new positions
        slots: 0, 1, ..., S - 1: all slots that are filled, and possibly more
        starts: first position of each row's current document, int64 (B, 1). None: no `document_mask`
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], lengths: Tensor, slots: Tensor, starts: Tensor | None = None
    ) -> None:
        self.keys, self.values = keys, values
        self.num_slots = self.max_len = keys[0].shape[2] - 1
        self.lengths = [0] * keys[0].shape[0]  # the true lengths are tensors
        self._positions, self._new, self._end = lengths, self._index(lengths), len(slots)
        held = self._held(lengths + 1, slots)
        self._keys_held = held if starts is None else held.masked_fill(held < starts, -1)

    def reserve(self, num_new: int) -> tuple[slice | Tensor, Tensor | None]:
        """The new positions, (B, 1), and the position of every key, (B, S), negative for an empty slot."""
        return self._positions, self._keys_held

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one key and value per row, (B, K, 1, E) each, and returns the first S slots, (B, K, S, E) each."""
        return self._scatter(self.keys[layer], key), self._scatter(self.values[layer], value)
