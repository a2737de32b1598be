"""The parts of a network, read from its modules: shapes, parameters and operations, in the order of the computation.

Operations are those of training on one token at full context, by the convention of `tinylm.model.flops_per_token`: six
per parameter that a product uses, and those of the attention scores. Tied weights are counted once. Equal blocks form
one `Stage`. A part that is not one of tinylm's own classes, such as a plug-in, is described by its submodules.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn

from tinylm.analysis.watch import blocks_of
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import Attention
from tinylm.model.count import count_parameters
from tinylm.model.feedforward import FeedForward, SwiGLU
from tinylm.model.lora import LoRALinear
from tinylm.model.normalization import HeadsRMSNorm, RMSNorm
from tinylm.model.positional import PositionTable
from tinylm.model.quantized import QuantizedLinear

TIMES = "\u00d7"
OPERATIONS = 6  # per parameter and token: a multiplication and an addition forward, and twice that backward


@dataclass(frozen=True, kw_only=True)
class Box:
    """A module, or a step without parameters.

    Attributes:
        title: what it is
        lines: details; a pair is a line with a left and a right end
        parameters: weights of its own; tied weights count for the embedding
        flops: operations of training on one token
    """

    title: str
    lines: tuple[str | tuple[str, str], ...] = ()
    parameters: int = 0
    flops: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Attention or a feed-forward layer: rows of boxes, each row computed from the one above.

    Attributes:
        title: what it is
        rows: boxes side by side; None where a value passes unchanged
        shapes: the shape of what leaves each row
    """

    title: str
    rows: tuple[tuple[Box | None, ...], ...]
    shapes: tuple[str, ...]

    @property
    def boxes(self) -> Iterator[Box]:
        """All boxes."""
        return (box for row in self.rows for box in row if box is not None)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Equal blocks.

    Attributes:
        layers: their indices
        form: the order of norms and sums, `Block.form`
    """

    layers: tuple[int, ...]
    form: str
    attention_norm: Box | None
    attention: Layer
    feedforward_norm: Box | None
    feedforward: Layer

    @property
    def boxes(self) -> Iterator[Box]:
        """The boxes of one block."""
        norms = (box for box in (self.attention_norm, self.feedforward_norm) if box is not None)
        return iter([*norms, *self.attention.boxes, *self.feedforward.boxes])


@dataclass(frozen=True, kw_only=True)
class Network:
    """A whole network.

    Attributes:
        axes: size of each axis of the legend in `tinylm.model`, by its letter
        positions: what is added to the embeddings, or nothing
        dropout: probability of dropping a value in training
    """

    axes: dict[str, int]
    embedding: Box
    positions: Box | None
    stages: tuple[Stage, ...]
    final_norm: Box | None
    head: Box
    dropout: float = 0.0

    @property
    def counted(self) -> Iterator[tuple[Box, int]]:
        """Every box, and how often the network has it."""
        yield from ((box, 1) for box in (self.embedding, self.positions, self.final_norm, self.head) if box)
        yield from ((box, len(stage.layers)) for stage in self.stages for box in stage.boxes)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(box.parameters * times for box, times in self.counted)

    @property
    def flops(self) -> int:
        """Operations of training on one token."""
        return sum(box.flops * times for box, times in self.counted)


def read_network(model: TransformerLM) -> Network:
    """The parts of a model, whose weights may have no values (`tinylm.model.size.empty_model`).

    Raises:
        ConfigError: if a block is not a `Block`.
    """
    config, blocks = model.config, blocks_of(model)
    found = [_stage(model, layer) for layer in range(len(blocks))]
    kinds = list(dict.fromkeys(replace(stage, layers=()) for stage in found))
    stages = (
        replace(kind, layers=tuple(layer for layer, stage in enumerate(found) if replace(stage, layers=()) == kind))
        for kind in kinds
    )
    return Network(
        axes=_axes(model),
        embedding=_embedding(model),
        positions=_positions(model),
        stages=tuple(sorted(stages, key=lambda stage: stage.layers)),
        final_norm=_norm(model.final_norm),
        head=_head(model),
        dropout=max((each.p for each in model.modules() if isinstance(each, nn.Dropout)), default=config.dropout),
    )


def _axes(model: TransformerLM) -> dict[str, int]:
    config, first = model.config, model.blocks[0]
    axes = {"T": config.max_seq_len, "D": config.d_model, "H": config.num_heads, "K": config.kv_heads}
    axes["E"] = config.head_dim
    feedforward: Any = first.feedforward
    if type(feedforward) in (FeedForward, SwiGLU):
        axes["F"] = feedforward.input.out_features
    return axes | {"V": config.vocab_size}


# --- outside the blocks


def _embedding(model: TransformerLM) -> Box:
    rows, width = model.embedding.weight.shape
    return Box(title="Embedding", lines=(f"a row of D for each of {rows:,} tokens",), parameters=rows * width)


def _positions(model: TransformerLM) -> Box | None:
    module = model.positions
    if isinstance(module, nn.Embedding):
        rows = module.num_embeddings
        return Box(
            title="Learned positions",
            lines=(f"added: a row of D for each of {rows:,}",),
            parameters=_parameters(module),
        )
    if isinstance(module, PositionTable):
        if model.config.positional_encoding == "rotary":
            return None  # drawn in attention, which rotates
        return Box(title="Sinusoidal positions", lines=("added: a table, which is not trained",))
    return None if module is None else _unknown(module)


def _head(model: TransformerLM) -> Box:
    tied, head = model.config.tie_embeddings, model.head
    weights, bias = head.in_features * head.out_features, 0 if head.bias is None else head.out_features
    lines = (f"{_sizes(head)}: the logits of the next token", *(["its weights are the embedding's"] if tied else []))
    return Box(
        title="Head", lines=lines, parameters=bias + (0 if tied else weights), flops=OPERATIONS * (weights + bias)
    )


def _norm(module: nn.Module) -> Box | None:
    return None if isinstance(module, nn.Identity) else _module(type(module).__name__, module)


# --- blocks


def _stage(model: TransformerLM, layer: int) -> Stage:
    block = blocks_of(model)[layer]
    return Stage(
        layers=(layer,),
        form=block.form,
        attention_norm=_norm(block.attention_norm),
        attention=_attention(model, layer),
        feedforward_norm=_norm(block.feedforward_norm),
        feedforward=_feedforward(block.feedforward),
    )


def _attention(model: TransformerLM, layer: int) -> Layer:
    module, config = blocks_of(model)[layer].attention, model.config
    keys, window = config.max_seq_len, model.windows[layer % len(model.windows)]
    keys = min(keys, window or keys)
    if type(module) is not Attention:
        own = getattr(module, "score_flops", None)
        scores = 4 * config.num_heads * config.head_dim * keys if own is None else own(keys)
        box = _unknown(module, _cached(module, config))
        return Layer(title="Attention", rows=((replace(box, flops=box.flops + 3 * scores),),), shapes=("(B, T, D)",))
    E = module.head_dim
    heads, kv = module.query.out_features // E, module.key.out_features // E
    rows: list[tuple[Box | None, ...]] = [
        (
            _linear("query", module.query, "(B, T, H, E)"),
            _linear("key", module.key, "(B, T, K, E)"),
            _linear("value", module.value, "(B, T, K, E)"),
        )
    ]
    if module.query_norm is not None and module.key_norm is not None:
        norms = (module.query_norm, module.key_norm)
        rows.append((*(_qk_norm(norm) for norm in norms), None))
    if config.positional_encoding == "rotary" and module.rotates:
        part = f"{config.rotary_dim} of {E}" if config.rotary_dim < E else "by position"
        rows.append((Box(title="rotate", lines=(part,)), Box(title="rotate", lines=(part,)), None))
    scale = f"q kᵀ / √{E}" if module.scale is None else f"{module.scale:g} q kᵀ"
    shared = f"; {kv} of keys and values, each for {heads // kv}" if kv < heads else ""
    lines = [f"{_count(heads, 'head')} of {E}{shared}", "each token sees itself and those before"]
    lines += (
        [f"at most {window:,} tokens: a sliding window"] if window is not None and window < config.max_seq_len else []
    )
    rows.append((Box(title=f"softmax({scale}) v", lines=tuple(lines), flops=12 * heads * E * keys),))
    rows.append((_linear("output", module.output),))
    shapes = ("",) * (len(rows) - 2) + ("(B, T, H E)", "(B, T, D)")
    return Layer(title="Attention", rows=tuple(rows), shapes=shapes)


def _qk_norm(norm: RMSNorm) -> Box:
    box = _module("RMSNorm", norm)
    return replace(box, lines=("all heads as one",)) if isinstance(norm, HeadsRMSNorm) else box


def _feedforward(module: Any) -> Layer:
    if type(module) is SwiGLU:
        first = (_linear("gate", module.gate), _linear("input", module.input))
        middle = Box(title="silu(gate) · input")
    elif type(module) is FeedForward:
        first, middle = (_linear("input", module.input),), _activation(module.activation)
    else:
        return Layer(title="Feed-forward", rows=((_unknown(module),),), shapes=("(B, T, D)",))
    rows = (first, (middle,), (_linear("output", module.output),))
    return Layer(title="Feed-forward", rows=rows, shapes=("(B, T, F)", "(B, T, F)", "(B, T, D)"))


def _activation(activation: Any) -> Box:
    if isinstance(activation, nn.Module):
        return _module(type(activation).__name__, activation)
    function = activation.func if isinstance(activation, partial) else activation
    return Box(title=getattr(function, "__name__", type(function).__name__))


# --- modules


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _sizes(linear: Any) -> str:
    return f"{linear.in_features:,} → {linear.out_features:,}"


def _form(linear: Any) -> list[str]:
    """The features of a linear layer that its sizes do not tell."""
    if isinstance(linear, LoRALinear):
        ranks = ", ".join(str(len(linear.lora_a[name])) for name in linear.active)
        return ["with bias"] * (linear.bias is not None) + [f"+ LoRA, rank {ranks}"] * bool(ranks)
    bits = [linear.kind] if isinstance(linear, QuantizedLinear) else []
    return ["with bias"] * (linear.bias is not None) + bits


def _linear(title: str, linear: Any, shape: str = "") -> Box:
    lines = (_sizes(linear), *_form(linear), *([shape] if shape else []))
    return replace(_module(title, linear), lines=lines)


def _module(title: str, module: nn.Module) -> Box:
    parameters = _parameters(module)
    return Box(title=title, parameters=parameters, flops=OPERATIONS * (parameters - _idle(module)))


def _parameters(module: nn.Module) -> int:
    return count_parameters(nn.ModuleList([module]))  # adapters are known by the name of the layer before theirs


def _idle(module: nn.Module) -> int:
    """Parameters that a token does not use."""
    sparse: list[Any] = [each for each in module.modules() if hasattr(each, "active_parameters")]
    return sum(_parameters(each) - each.active_parameters for each in sparse)


def _unknown(module: nn.Module, *notes: str) -> Box:
    """A module of a class that is not tinylm's: its submodules, one line each."""
    children = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Identity)]
    lines = [(f"{name}: {_describe(child)}", f"{_parameters(child):,}") for name, child in children]
    own = module.named_parameters(recurse=False)
    lines += [(f"{name}: {_shape(weight)}", f"{weight.numel():,}") for name, weight in own]
    if idle := _idle(module):
        whole = _parameters(module)
        lines.append((f"a token uses {whole - idle:,} of", f"{whole:,}"))
    return replace(_module(type(module).__name__, module), lines=(*lines, *(note for note in notes if note)))


def _shape(weight: torch.Tensor) -> str:
    return f" {TIMES} ".join(f"{size:,}" for size in weight.shape)


def _describe(module: Any) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear | QuantizedLinear):
        return f"{name} {_sizes(module)}"
    if isinstance(module, nn.ModuleList):
        runs = [(kind, len(list(group))) for kind, group in groupby(type(each).__name__ for each in module)]
        return ", ".join(f"{count} {TIMES} {kind}" for kind, count in runs)
    return name


def _cached(module: nn.Module, config: ModelConfig) -> str:
    """The numbers that a plug-in's cache holds for a token, if the plug-in says so."""
    shape = getattr(module, "cache_shape", None)
    if shape is None or config.attention is None:
        return ""
    heads, key, value = shape(config, **config.attention.init_args)
    return f"its cache holds {heads * (key + value):,} numbers per token"
