"""GraphDecoder: a whole step on the device, from the last tokens to the next ones, launched as one CUDA graph.

A step reads and writes tensors that never move (`StaticRows`): the last token of each row, its position, the cache.
It ends by drawing the next tokens, on the device, where the following step finds them, so that the host need not wait
for a token before it launches the next step (generation/ahead.py). Rows differ in length by their positions alone.

A graph reads a fixed number of cache slots, a power of two, so there is one for each length class. Results are those of
`Decoder` up to rounding: its layers are captured, and the random numbers are a function of seed and position.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinylm.errors import ConfigError, first_line, notice
from tinylm.generation.fast.compiled import StaticCache
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.fast.sampler import Sampler
from tinylm.generation.text import Text
from tinylm.kernels.cuda_graph import capture, read_later
from tinylm.model import RingKVCache, TransformerLM
from tinylm.model.lora import LoRALinear
from tinylm.model.quantized import QuantizedLinear


def uncapturable_part(model: TransformerLM) -> str | None:
    """Describes the part of a standard model that a `GraphDecoder` does not support; None if there is none."""
    if model.cache_type is not RingKVCache:
        return f"its cache is {model.cache_type.__name__}"
    other = (each for each in model.modules() if isinstance(each, QuantizedLinear | LoRALinear))
    return next((f"it has layers of {type(each).__name__}" for each in other), None)


class GraphDecoder(Decoder):
    """A `Decoder` whose steps can also run entirely on the device; on a CPU they run in the same way, uncaptured.

    Args:
        model: the model, in evaluation mode
        compiled: whether `torch.compile` compiles the step. It takes a minute for each number of rows, at the first
            step; if it fails, a notice is printed and the step is captured as it is

    Raises:
        ConfigError: as `CachedDecoder` does, and for quantized layers, LoRA adapters and an 8-bit cache.
    """

    SMALLEST: ClassVar = 128  # slots of the smallest length class

    def __init__(self, model: TransformerLM, compiled: bool = False) -> None:
        super().__init__(model)
        self.run: Callable[..., Tensor] = (
            torch.compile(self.read_static, dynamic=False) if compiled else self.read_static
        )
        self.compiled = compiled
        self._idle: StaticRows | None = None

    def check(self) -> None:
        """Raises ConfigError if this decoder does not, or no longer, fit its model."""
        super().check()
        if (reason := uncapturable_part(self.model)) is not None:
            raise ConfigError(f"GraphDecoder cannot read this model: {reason}; use a Decoder")

    def read_static(
        self,
        ids: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        lengths: Tensor,
        slots: Tensor,
        starts: Tensor | None,
    ) -> Tensor:
        """The logits after one token of each row, (B,) -> (B, V); the others are those of `StaticCache`."""
        return self.read(ids, StaticCache(keys, values, lengths, slots, starts))

    @contextlib.contextmanager
    def static_rows(self, count: int) -> Iterator["StaticRows"]:
        """Rows for `count` texts. The previous rows are reused with their graphs, unless an error left them broken."""
        rows, self._idle = self._idle, None
        if rows is None or rows.cache.batch_size != count or rows.end != self.separator:
            rows = StaticRows(self, count)
        with contextlib.suppress(GeneratorExit):  # the consumer stops; nothing else may follow the `yield`
            yield rows
        self._idle = rows


class StaticRows:
    """The texts being generated, as tensors that one step reads and writes.

    Args:
        decoder: reads the tokens
        count: number of rows, B

    Attributes:
        cache: keys and values
        state: for each row the last token, its position, the first visible position, the key of the random numbers and
            the number of tokens generated, int64 (B, 5)
        result: the token drawn in each row, its log probability and its fault (sampler.py), float64 (B, 3)
        end: id of the token that ends a document, for models with `document_mask`
    """

    def __init__(self, decoder: GraphDecoder, count: int) -> None:
        self.decoder, self.cache, self.end = decoder, decoder.make_cache(count), decoder.separator
        self.device = decoder.device
        self.state = torch.zeros(count, 5, dtype=torch.long, device=self.device)
        self.result = torch.zeros(count, 3, dtype=torch.float64, device=self.device)
        self.sampler: Sampler | None = None
        self._programs: dict[int, Callable[[], None]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def sample_by(self, sampler: Sampler) -> None:
        """Draws tokens by a sampler from now on. Graphs are kept if the last one had the same options."""
        if self.sampler is None or self.sampler.key != sampler.key:
            self.sampler, self._programs = sampler, {}

    def begin(self, row: int, text: Text) -> None:
        """Begins or continues a text in a row, whose cache holds all its tokens but the last."""
        assert self.sampler is not None
        ids, last = [*text.prompt, *text.ids], self.cache.lengths[row]
        state = torch.tensor([ids[-1], last, self.cache.begins[row][-1], text.random.key, len(text.ids)])
        state = state.pin_memory() if self.device.type == "cuda" else state
        self.state[row].copy_(state, non_blocking=True)
        self.sampler.begin(row, text)

    def launch(self, live: list[int]) -> Callable[[], list]:
        """Launches a step, which counts in the lengths of the `live` rows, and returns its `result`, to be read."""
        longest = max(self.cache.lengths[row] for row in live) + 1
        slots = min(max(1 << (longest - 1).bit_length(), self.decoder.SMALLEST), self.cache.num_slots)
        if slots not in self._programs:
            self._programs[slots] = self._program(slots)
        self._programs[slots]()
        for row in live:
            self.cache.lengths[row] += 1
        return read_later(self.result)

    def _program(self, count: int) -> Callable[[], None]:
        """A step that reads the first `count` slots."""
        assert self.sampler is not None
        slots = torch.arange(count, device=self.device)
        changed = [self.state, *self.sampler.changed]
        saved = [each.clone() for each in changed]

        def restore() -> None:
            for tensor, before in zip(changed, saved, strict=True):
                tensor.copy_(before)

        if self.decoder.compiled:
            self._compile(slots, restore)
        return capture(lambda: self._step(slots), self.device, restore, self._pool)

    def _compile(self, slots: Tensor, restore: Callable[[], None]) -> None:
        """Compiles by running a step; falls back to the step as it is."""
        from torch._dynamo import maybe_mark_dynamic

        assert self.sampler is not None
        if len(slots) < self.cache.num_slots:
            maybe_mark_dynamic(slots, 0)  # one program for all length classes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own code
                self.sampler.compile()
                self._step(slots)
        except RuntimeError as error:  # of the compiler
            notice(f"a step cannot be compiled, which makes it slower: {first_line(error)}")
            self.decoder.compiled, self.decoder.run = False, self.decoder.read_static
            self.sampler.draw = self.sampler.drawn
        restore()

    def _step(self, slots: Tensor) -> None:
        """Reads the last token of every row and draws the next one; all in place, without waiting for the device."""
        assert self.sampler is not None
        ids, positions, starts, keys, made = self.state.unbind(1)
        begins = None if self.end is None else starts[:, None]
        logits = self.decoder.run(ids, self.cache.keys, self.cache.values, positions[:, None], slots, begins)
        tokens, result = self.sampler.draw(logits, keys, made)
        self.result.copy_(result)
        self.sampler.count(tokens)
        positions.add_(1).clamp_(
            max=self.cache.max_len - 1
        )  # a row whose text has ended continues until it is replaced
        if self.end is not None:  # the token that was read ended a document
            starts.copy_(torch.where(ids == self.end, positions, starts))
        ids.copy_(tokens)
        made.add_(1)
