"""The network once more, rearranged to read one token of each text quickly.

A decoding step multiplies a few vectors by every matrix. What it costs is bringing the weights from memory and, in a
small network, the work around each operation. So, compared with the modules of `tinylm.model`, here

- queries, keys and values are one product, and so are the two inputs of SwiGLU;
- matrices lie transposed and, on a CPU, cut into as many parts as there are threads: its library shares a product out
  by rows of x, of which there are few, but a batch of products one by one;
- queries and keys are normalized and rotated together;
- there is no dropout, no gradient and no module around an operation.

Numbers differ from the modules' by rounding alone. The weights are copied: what is changed in the model later is not
seen. Prompts are read by the modules, into the same cache.
"""

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.errors import ConfigError
from tinylm.model import KVCache, TransformerLM
from tinylm.model.attention import visible_keys, visible_places
from tinylm.model.cache import StaticCache
from tinylm.model.feedforward import SwiGLU
from tinylm.model.linear import aligned, join_layers
from tinylm.model.normalization import LayerNorm, RMSNorm, widened
from tinylm.model.positional import PositionTable
from tinylm.model.transformer import Block


class Decoder:
    """Reads one token of each row.

    Args:
        model: the network, in evaluation mode
    """

    fixed_rows: ClassVar = False  # whether another number of rows would cost much

    def __init__(self, model: TransformerLM) -> None:
        config, device = model.config, model.embedding.weight.device
        parts = torch.get_num_threads() if device.type == "cpu" else 1
        self.embedding = model.embedding
        self.positions = _position_rows(model)
        self.rotary = config.positional_encoding == "rotary"
        self.window = config.sliding_window
        self.layers = [_Layer(block, parts) for block in model.blocks if isinstance(block, Block)]
        self.final_norm = _norm(model.final_norm)
        self.head = _Product([model.head], parts)

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
        return widened(logits)


def _position_rows(model: TransformerLM) -> Tensor | None:
    """What belongs to each position: a vector to add, (positions, D), or for rotary ones the cosines and the signed
    sines of each coordinate, (positions, 2, 1, 1, E)."""
    match model.positions:
        case nn.Embedding():
            return model.positions.weight
        case PositionTable() if model.config.positional_encoding == "rotary":
            cos, sin = model.positions(model.embedding.weight)  # (positions, E/2) each
            rows = torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)
            return rows[:, :, None, None]
        case PositionTable():
            return model.positions(model.embedding.weight)
    return None


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm computes."""
    if isinstance(module, nn.Identity):
        return module.forward
    assert isinstance(module, LayerNorm | RMSNorm)
    weight, eps = module.weight, module.eps
    if isinstance(module, RMSNorm):
        return lambda x: torch.rms_norm(x, weight.shape, weight, eps)
    return lambda x: torch.layer_norm(x, weight.shape, weight, module.bias, eps)


class _Layer:
    """A `Block` for one token of each row."""

    def __init__(self, block: Block, parts: int) -> None:
        attention, feedforward = block.attention, block.feedforward
        self.pre_norm, self.index, self.head_width = block.pre_norm, attention.layer, attention.head_width
        self.attention_norm, self.feedforward_norm = _norm(block.attention_norm), _norm(block.feedforward_norm)
        self.heads = attention.query.out_features // self.head_width
        self.kv_heads = attention.key.out_features // self.head_width
        self.qk_weight = None
        if attention.query_norm is not None and attention.key_norm is not None:
            weights = (attention.query_norm.weight.expand(self.heads, -1), attention.key_norm.weight)
            both = torch.cat((weights[0], weights[1].expand(self.kv_heads, -1)))
            self.qk_weight = both.detach()[:, None]  # (H + K, 1, E)
            self.eps = attention.query_norm.eps
        self.query_key_value = _Product([attention.query, attention.key, attention.value], parts)
        self.attention_output = _Product([attention.output], parts)
        self.gated = isinstance(feedforward, SwiGLU)
        inputs = [feedforward.gate, feedforward.input] if isinstance(feedforward, SwiGLU) else [feedforward.input]
        self.activation = None if isinstance(feedforward, SwiGLU) else feedforward.activation
        self.input, self.output = _Product(inputs, parts), _Product([feedforward.output], parts)

    def forward(self, x: Tensor, rotary: Sequence[Tensor] | None, mask: Tensor | None, cache: KVCache) -> Tensor:
        """(B, D) -> (B, D)

        Args:
            x: what comes in
            rotary: cosines and signed sines, (B, 1, 1, E) each, or one row for all
            mask: what is added to the scores of keys, (B, 1, 1, S)
            cache: of keys and values
        """
        if self.pre_norm:
            x = x + self._attend(self.attention_norm(x), rotary, mask, cache)
            return x + self._feed(self.feedforward_norm(x))
        x = self.attention_norm(x + self._attend(x, rotary, mask, cache))
        return self.feedforward_norm(x + self._feed(x))

    def _attend(self, x: Tensor, rotary: Sequence[Tensor] | None, mask: Tensor | None, cache: KVCache) -> Tensor:
        B, H, K, E = x.shape[0], self.heads, self.kv_heads, self.head_width
        heads = self.query_key_value.forward(x).view(B, H + 2 * K, 1, E)
        both, value = heads.split_with_sizes((H + K, K), dim=1)
        if self.qk_weight is not None:
            both = torch.rms_norm(both, (E,), None, self.eps) * self.qk_weight
        if rotary is not None:
            both = torch.addcmul(both * rotary[0], both.roll(E // 2, dims=-1), rotary[1]).type_as(x)
        query, key = both.split_with_sizes((H, K), dim=1)  # (B, H, 1, E), (B, K, 1, E)
        keys, values = cache.append(self.index, key, value)  # (B, K, S, E) each
        query = query.view(B, K, H // K, E)  # the heads of a group stand where queries of a text would
        if B == 1:
            return self.attention_output.forward(F.scaled_dot_product_attention(query, keys, values, mask).view(B, -1))
        query, keys, values = query.reshape(B * K, H // K, E), keys.flatten(0, 1), values.flatten(0, 1)
        mask = query.new_zeros(()) if mask is None else mask.expand(B, K, -1, -1).reshape(B * K, 1, -1)
        weights = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=E**-0.5).softmax(dim=-1)  # (B K, H/K, S)
        return self.attention_output.forward(torch.bmm(weights, values).view(B, H * E))

    def _feed(self, x: Tensor) -> Tensor:
        inside = self.input.forward(x)
        if self.gated:
            gate, inside = inside.chunk(2, dim=-1)
            return self.output.forward(F.silu(gate) * inside)
        assert self.activation is not None
        return self.output.forward(self.activation(inside))


class _Product:
    """Linear layers of the same input as one product: (B, inputs) -> (B, all outputs).

    Args:
        layers: what to put together; layers in few bits are joined where they are alike, and if one is something else
            than a plain `nn.Linear`, each computes for itself
        parts: into how many the outputs are cut, if they can be
    """

    def __init__(self, layers: Sequence[nn.Module], parts: int) -> None:
        plain = [layer for layer in layers if type(layer) is nn.Linear]
        self.layers = None if len(plain) == len(layers) else list(layers)
        if self.layers is not None:
            joined = join_layers(self.layers)
            self.layers = self.layers if joined is None else [joined]
            return
        weight = torch.cat([layer.weight.detach() for layer in plain])  # (O, I)
        biases = [layer.bias.detach() for layer in plain if layer.bias is not None]
        outputs, inputs = weight.shape
        self.parts = parts if outputs % parts == 0 else 1
        weight = weight.view(self.parts, -1, inputs).transpose(1, 2).contiguous()  # (G, I, O/G)
        bias = torch.cat(biases).view(self.parts, 1, -1) if biases else None
        self.weight = weight if self.parts > 1 else weight[0]
        self.bias = bias if bias is None or self.parts > 1 else bias.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)"""
        if self.layers is not None:
            return self.layers[0](x) if len(self.layers) == 1 else torch.cat([each(x) for each in self.layers], dim=-1)
        if self.parts == 1:
            return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        x = x.expand(self.parts, -1, -1)  # (G, B, I)
        y = torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)
        rows = x.shape[1]
        return y.view(1, -1) if rows == 1 else y.transpose(0, 1).reshape(rows, -1)


class CompiledDecoder:
    """`torch.compile`'s program of a step, of the modules as they are, with the weights as constants.

    One program serves all lengths: of the cache's places as many take part as are filled, rounded up. The first step
    for each number of rows takes half a minute and more, and needs a C++ compiler: without one it raises a ConfigError.
    To be called in `torch.inference_mode`, in which the cache and all ids are made, too.

    Args:
        model: the network, in evaluation mode
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
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = aligned(tensor.data)  # of a constant Inductor forgets where in its storage it begins
        self._run = torch.compile(_Step(model), dynamic=False, fullgraph=True)
        self._ready: set[int] = set()  # numbers of rows

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """As `Decoder.step`."""
        lengths = torch.tensor(cache.lengths, device=ids.device)[:, None]
        filled = max(cache.lengths) // self.ROUNDED * self.ROUNDED + self.ROUNDED
        places = torch.arange(min(filled, cache.places), device=ids.device)
        if len(ids) not in self._ready:
            self._compile(ids, lengths, places[: self.ROUNDED], cache)
            self._ready.add(len(ids))
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # the network and the cache are those: do not look
            logits = self._run(ids, lengths, places, cache.keys, cache.values)
        cache.advance(1)
        return logits

    def _compile(self, ids: Tensor, lengths: Tensor, places: Tensor, cache: KVCache) -> None:
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
                self._run(ids, lengths, places, cache.keys, cache.values)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise ConfigError(f"a step cannot be compiled ({reason}); install a C++ compiler, or do without") from error


class _Step(nn.Module):
    def __init__(self, model: TransformerLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, lengths: Tensor, places: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        cache = StaticCache(keys, values, lengths, places)
        visible = visible_places(lengths, cache.held, self.model.config.sliding_window)
        return self.model.logits(self.model.read(ids[:, None], lengths, visible, cache)[:, -1])


@torch.inference_mode()
def fastest_threads(model: TransformerLM, rows: int = 1) -> int:
    """Sets PyTorch's number of threads to the one with which a step is fastest here and now, and gives it.

    Small networks decode best on few threads, and where another process wants a core, threads that wait for each other
    can take ten times as long. So powers of two up to the number set before are tried in turn, for a fraction of a
    second. On other devices than a CPU nothing is tried.
    """
    most, device = torch.get_num_threads(), model.embedding.weight.device
    if device.type != "cpu" or most == 1:
        return most
    counts = [*(1 << n for n in range((most - 1).bit_length())), most]
    decoders = {}
    for count in counts:
        torch.set_num_threads(count)
        decoders[count] = Decoder(model)
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
def step_seconds(decoder: Decoder, model: TransformerLM, rows: int = 1, steps: int = 7) -> list[float]:
    """Seconds of some steps in the middle of the context, after one that wakes threads and brings the weights near."""
    ids, seconds = torch.zeros(rows, dtype=torch.long), []
    cache = model.make_cache(rows)
    cache.truncate([cache.max_len // 2] * rows)  # as if so many had been read
    for _ in range(min(steps + 1, cache.max_len - cache.max_len // 2)):
        started = time.perf_counter()
        decoder.step(ids, cache)
        seconds.append(time.perf_counter() - started)
    return seconds[1:] or seconds
