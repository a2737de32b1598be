"""What reads the tokens of texts one after the other, for the logits of what follows: three ways to the same numbers.

`Decoder` is the network a second time, rearranged to read one token of each text quickly (layers.py): a step multiplies
a few vectors by every matrix, and what that costs is bringing the weights from memory and, in a small network, the work
around each operation. Numbers differ from the modules' by rounding alone. `CompiledDecoder` is `torch.compile`'s
program of the modules. Both are served with prompts by the modules, into the same cache of keys and values.

Both are right only for a network that is exactly what its config describes (model/known.py). `make_decoder` looks
first: any other network is read by an `UncachedDecoder`, which asks the network itself, and the user is told.

The weights are copied. A `Generator` looks again whenever it begins to write, so that hooks, layers and weights that
were changed since are noticed; only writing into `weight.data` is not.
"""

import contextlib
import io
import statistics
import time
import warnings
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.errors import ConfigError, notice
from tinylm.generation.fast.cached import CachedDecoder, unsuited_part
from tinylm.generation.fast.layers import Layer, Product, norm_function, position_rows
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import KVCache, TransformerLM
from tinylm.model.attention import visible_keys, visible_places
from tinylm.model.cache import StaticCache
from tinylm.model.known import check_deterministic
from tinylm.model.normalization import widened
from tinylm.model.quantized import aligned
from tinylm.model.transformer import Block


def make_decoder(
    model: TransformerLM, earlier: "Decoder | UncachedDecoder | None" = None
) -> "Decoder | UncachedDecoder":
    """What reads this network: a `Decoder` if that is right for it, else an `UncachedDecoder`, with a notice.

    Args:
        model: the network, in evaluation mode
        earlier: one that was made for it before, which is given back if it still is what would be made

    Raises:
        ConfigError: for a network in training mode that has dropout.
    """
    check_deterministic(model)
    reason = unsuited_part(model)
    if reason is None:
        return earlier if isinstance(earlier, Decoder) and earlier.is_current else Decoder(model)
    if _told.get(model) != reason:
        _told[model] = reason
        notice(f"decoding without a cache, which is slower: {reason}")
    return earlier if isinstance(earlier, UncachedDecoder) else UncachedDecoder(model)


_told: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()  # of which networks, and why


class Decoder(CachedDecoder):
    """Reads one token of each row, by the rearranged network. Arguments and errors as `CachedDecoder`'s."""

    def __init__(self, model: TransformerLM) -> None:
        super().__init__(model)
        config, device = model.config, model.embedding.weight.device
        parts = torch.get_num_threads() if device.type == "cpu" else 1
        self.embedding = model.embedding
        self.positions = position_rows(model)
        self.rotary = config.positional_encoding == "rotary"
        self.window = config.sliding_window
        self.layers = [Layer(block, parts) for block in model.blocks if isinstance(block, Block)]
        self.final_norm = norm_function(model.final_norm)
        self.head = Product([model.head], parts)

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """The logits of what follows. To be called where no gradients are recorded.

        Args:
            ids: the next token of each row, int64 (B,)
            cache: what the rows have read so far; the tokens are added to it

        Returns:
            (B, V), in float32 at least
        """
        positions, places = cache.place(1)
        if isinstance(positions, slice):
            visible = visible_keys(1, positions.stop, window=self.window, device=ids.device)  # (1, S)
            visible = None if visible is None else visible[None, None]
        else:
            assert places is not None
            visible = visible_places(positions, places, self.window)  # (B, 1, 1, S)
            positions = positions[:, 0]
        mask = None
        if visible is not None:
            mask = torch.zeros(visible.shape, dtype=self.embedding.weight.dtype, device=ids.device)
            mask.masked_fill_(~visible, float("-inf"))
        x, rotary = F.embedding(ids, self.embedding.weight), None  # (B, D)
        if self.positions is not None:
            rows = self.positions[positions]  # (B, ...), or (1, ...) for all
            if self.rotary:
                rotary = rows.unbind(1)
            else:
                x = (x + rows).type_as(x)
        for layer in self.layers:
            x = layer.forward(x, rotary, mask, cache)
        logits = self.head.forward(self.final_norm(x))
        cache.advance(1)
        self._end_documents(ids, cache)
        return widened(logits)


class CompiledDecoder(CachedDecoder):
    """`torch.compile`'s program of a step, of the modules as they are, with the weights as constants.

    One program serves all lengths: of the cache's places as many take part as are filled, rounded up. The first step
    for each number of rows takes half a minute and more, and needs a C++ compiler: without one it raises a ConfigError.
    To be called in `torch.inference_mode`, in which the cache and all ids are made, too. Arguments and errors as
    `CachedDecoder`'s.
    """

    fixed_rows: ClassVar = True
    ROUNDED: ClassVar = 32  # places; as many at least are worth a loop
    OPTIONS: ClassVar[dict[str, Any]] = {
        "freezing": True,  # weights are constants, so they can lie as the kernels want them
        "max_autotune": True,  # kernels of its own for the products, where they are faster
        "max_autotune_gemm_backends": "CPP,ATEN",
        "autotune_num_choices_displayed": 0,
        "fx_graph_cache": False,  # it takes a network of the same shape for the same one, weights and all
    }

    def __init__(self, model: TransformerLM) -> None:
        if model.cache_type is not KVCache:
            raise ConfigError("a compiled step has no cache in 8 bits; take one of the two")
        super().__init__(model)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = aligned(tensor.data)  # of a constant Inductor forgets where in its storage it begins
        self._weights, self._versions = self._look()
        self._run = torch.compile(_Step(model), dynamic=False, fullgraph=True)
        self._ready: set[int] = set()  # numbers of rows

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """As `Decoder.step`."""
        lengths = torch.tensor(cache.lengths, device=ids.device)[:, None]
        filled = max(cache.lengths) // self.ROUNDED * self.ROUNDED + self.ROUNDED
        places = torch.arange(min(filled, cache.places), device=ids.device)
        starts = None
        if self.model.config.document_mask:  # whether or not this text has documents: one program for all
            starts = torch.tensor([begins[-1] for begins in cache.begins], device=ids.device)[:, None]
        if len(ids) not in self._ready:
            self._compile(ids, lengths, places[: self.ROUNDED], starts, cache)
            self._ready.add(len(ids))
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # the network and the cache are those: do not look
            logits = self._run(ids, lengths, places, starts, cache.keys, cache.values)
        cache.advance(1)
        self._end_documents(ids, cache)
        return logits

    def _compile(self, ids: Tensor, lengths: Tensor, places: Tensor, starts: Tensor | None, cache: KVCache) -> None:
        """Makes the program by a first step; it writes where the step itself will, and what it gives is not used."""
        import torch._inductor.config as inductor  # a second of importing, for those who compile
        from torch._dynamo import mark_dynamic
        from torch._dynamo.exc import BackendCompilerFailed

        if len(places) < cache.places:
            mark_dynamic(places, 0)  # their number stays open
        said = contextlib.redirect_stderr(io.StringIO())  # what PyTorch tells of its kernels, and warns itself of
        try:
            with inductor.patch(self.OPTIONS), warnings.catch_warnings(), said:
                warnings.simplefilter("ignore")
                self._run(ids, lengths, places, starts, cache.keys, cache.values)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise ConfigError(f"a step cannot be compiled ({reason}); install a C++ compiler, or do without") from error


class _Step(nn.Module):
    def __init__(self, model: TransformerLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        places: Tensor,
        starts: Tensor | None,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        cache = StaticCache(keys, values, lengths, places, starts)
        visible = visible_places(lengths, cache.held, self.model.config.sliding_window)
        return self.model.logits(self.model.read(ids[:, None], lengths, visible, cache)[:, -1])


@torch.inference_mode()
def fastest_threads(model: TransformerLM, rows: int = 1) -> int:
    """Sets PyTorch's number of threads to the one with which a step is fastest here and now, and gives it.

    Small networks decode best on few threads, and where another process wants a core, threads that wait for each other
    can take ten times as long. So powers of two up to the number set before are tried in turn, for a fraction of a
    second. On other devices than a CPU nothing is tried.
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
    begun = time.perf_counter()
    while not seconds[1] or (len(seconds[1]) < 30 and time.perf_counter() - begun < 0.5):
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
    """Seconds of some steps in the middle of the context, after one that wakes threads and brings the weights near."""
    ids, seconds = torch.zeros(rows, dtype=torch.long), []
    cache: Any = decoder.make_cache(rows)
    cache.truncate([cache.max_len // 2] * rows)  # as if so many had been read
    for _ in range(min(steps + 1, cache.max_len - cache.max_len // 2)):
        started = time.perf_counter()
        decoder.step(ids, cache)
        seconds.append(time.perf_counter() - started)
    return seconds[1:] or seconds
