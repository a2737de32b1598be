"""The choice of a model's decoder, and of the number of threads."""

import statistics
import time
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tinylm.errors import notice
from tinylm.generation.fast import compiled
from tinylm.generation.fast.cached import CachedDecoder, on_cuda, unsuited_part
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.fast.graph import GraphDecoder, uncapturable_part
from tinylm.generation.fast.modules import ModuleDecoder
from tinylm.generation.uncached import UncachedDecoder
from tinylm.known import check_deterministic
from tinylm.model import TransformerLM

AnyDecoder = Decoder | ModuleDecoder | UncachedDecoder


def make_decoder(model: TransformerLM, earlier: "AnyDecoder | None" = None) -> "AnyDecoder":
    """Makes a `Decoder` for a standard model, and an `UncachedDecoder`, with a notice, for any other.

    A model with plug-ins that support a cache gets a `ModuleDecoder`. On CUDA a standard model gets a `GraphDecoder`,
    unless it has quantized layers, LoRA adapters or an 8-bit cache. An `earlier` decoder of the model is returned if it
    is still valid. A model with dropout in training mode raises ConfigError.
    """
    check_deterministic(model)
    reason = unsuited_part(model)
    if reason is None:
        captured = on_cuda(model) and uncapturable_part(model) is None
        if isinstance(earlier, Decoder) and isinstance(earlier, GraphDecoder) == captured and earlier.is_current:
            return earlier
        return GraphDecoder(model) if captured else Decoder(model)
    if (unsuited := ModuleDecoder.unsuited_part(model)) is None:
        if isinstance(earlier, ModuleDecoder) and earlier.is_current:
            return earlier
        decoder = ModuleDecoder(model)
        if (unsuited := decoder.broken_promise()) is None:
            _announce(model, f"decoding by the modules, which is slower than the tuned decoder: {reason}")
            return decoder
    _announce(model, f"decoding without a cache, which is slower: {unsuited}")
    return earlier if isinstance(earlier, UncachedDecoder) else UncachedDecoder(model)


def _announce(model: nn.Module, message: str) -> None:
    """Prints a notice, once for each model."""
    if _announced.get(model) != message:
        _announced[model] = message
        notice(message)


_announced: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()  # the notice given for each model


def compiled_decoder(model: TransformerLM) -> CachedDecoder:
    """The decoder of `--compile`: on CUDA a compiled `GraphDecoder`, elsewhere a `CompiledDecoder`, with a notice.

    On CUDA, a `Decoder` reads the models that a `GraphDecoder` does not support. Errors are those of `CachedDecoder`.
    """
    if on_cuda(model) and unsuited_part(model) is None and (reason := uncapturable_part(model)) is not None:
        notice(f"decoding without compilation, which is slower on a GPU: {reason}")
        return Decoder(model)
    decoder = GraphDecoder(model, compiled=True) if on_cuda(model) else compiled.CompiledDecoder(model)
    notice("compiling: about a minute")
    return decoder


@torch.inference_mode()
def fastest_threads(model: TransformerLM, rows: int = 1) -> int:
    """Sets the number of PyTorch threads to the one that decodes fastest right now, and returns it.

    Small models decode best on few threads, and if another process uses a core, threads that wait for each other can
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
def step_seconds(decoder: AnyDecoder, model: TransformerLM, rows: int = 1, steps: int = 7) -> list[float]:
    """Measures some steps in the middle of the context, in seconds, after one to warm up."""
    ids, seconds = torch.zeros(rows, dtype=torch.long), []
    cache: Any = decoder.make_cache(rows)
    cache.truncate([cache.max_len // 2] * rows)  # pretends that so many tokens have been read
    for _ in range(min(steps + 1, cache.max_len - cache.max_len // 2)):
        started = time.perf_counter()
        decoder.step(ids, cache)
        seconds.append(time.perf_counter() - started)
    return seconds[1:] or seconds
