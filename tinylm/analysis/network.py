"""The parts of a network, read from its modules: shapes, parameters and operations, in the order of the computation.

Operations are those of training on one token at full context, by the convention of `tinylm.model.flops_per_token`: six
per parameter that a product uses, and those of the attention scores. Tied weights are counted once. Equal blocks form
one `Stage`. A part that is not one of tinylm's own classes, such as a plug-in, is described by its submodules.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from tinylm.analysis.boxes import OPERATIONS, Box, linear_box, module_box, parameters, sizes, unknown_box
from tinylm.analysis.watch import blocks_of
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import Attention
from tinylm.model.feedforward import FeedForward, SwiGLU
from tinylm.model.normalization import HeadsRMSNorm, RMSNorm
from tinylm.model.positional import PositionTable


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Attention or a feed-forward layer: rows of boxes, each row computed from the one above.

    Attributes:
        title: name of the layer
        rows: boxes side by side; None where a value passes unchanged
        shapes: the output shape of each row
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
        positions: the box of positions added to the embeddings; None if there are none
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
            parameters=parameters(module),
        )
    if isinstance(module, PositionTable):
        if model.config.positional_encoding == "rotary":
            return None  # drawn in attention, which rotates
        return Box(title="Sinusoidal positions", lines=("added: a table, which is not trained",))
    return None if module is None else unknown_box(module)


def _head(model: TransformerLM) -> Box:
    tied, head = model.config.tie_embeddings, model.head
    weights, bias = head.in_features * head.out_features, 0 if head.bias is None else head.out_features
    lines = (f"{sizes(head)}: the logits of the next token", *(["its weights are the embedding's"] if tied else []))
    return Box(
        title="Head", lines=lines, parameters=bias + (0 if tied else weights), flops=OPERATIONS * (weights + bias)
    )


def _norm(module: nn.Module) -> Box | None:
    return None if isinstance(module, nn.Identity) else module_box(type(module).__name__, module)


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
    window = model.windows[layer % len(model.windows)]
    keys = min(config.max_seq_len, window or config.max_seq_len)
    if type(module) is Attention:
        return _own_attention(module, config, keys)
    own = getattr(module, "score_flops", None)
    scores = 4 * config.num_heads * config.head_dim * keys if own is None else own(keys)
    box = unknown_box(module, _cached(module, config))
    return Layer(title="Attention", rows=((replace(box, flops=box.flops + 3 * scores),),), shapes=("(B, T, D)",))


def _own_attention(module: Attention, config: ModelConfig, keys: int) -> Layer:
    """tinylm's attention, whose queries see at most `keys` keys."""
    projections = (
        linear_box("query", module.query, "(B, T, H, E)"),
        linear_box("key", module.key, "(B, T, K, E)"),
        linear_box("value", module.value, "(B, T, K, E)"),
    )
    rows: list[tuple[Box | None, ...]] = [projections]
    if module.query_norm is not None and module.key_norm is not None:
        rows.append((_qk_norm(module.query_norm), _qk_norm(module.key_norm), None))
    if config.positional_encoding == "rotary" and module.rotates:
        part = f"{config.rotary_dim} of {module.head_dim}" if config.rotary_dim < module.head_dim else "by position"
        rotation = Box(title="rotate", lines=(part,))
        rows.append((rotation, rotation, None))
    rows += [(_scores(module, config, keys),), (linear_box("output", module.output),)]
    shapes = ("",) * (len(rows) - 2) + ("(B, T, H E)", "(B, T, D)")
    return Layer(title="Attention", rows=tuple(rows), shapes=shapes)


def _scores(module: Attention, config: ModelConfig, keys: int) -> Box:
    """The products of queries and keys, and of their weights and the values."""
    E = module.head_dim
    heads, kv = module.query.out_features // E, module.key.out_features // E
    scale = f"q kᵀ / √{E}" if module.scale is None else f"{module.scale:g} q kᵀ"
    shared = f"; {kv} of keys and values, each for {heads // kv}" if kv < heads else ""
    lines = [f"{heads} head{'s' * (heads > 1)} of {E}{shared}", "each token sees itself and those before"]
    if keys < config.max_seq_len:
        lines.append(f"at most {keys:,} tokens: a sliding window")
    return Box(title=f"softmax({scale}) v", lines=tuple(lines), flops=12 * heads * E * keys)


def _qk_norm(norm: RMSNorm) -> Box:
    box = module_box("RMSNorm", norm)
    return replace(box, lines=("all heads as one",)) if isinstance(norm, HeadsRMSNorm) else box


def _feedforward(module: Any) -> Layer:
    if type(module) is SwiGLU:
        first = (linear_box("gate", module.gate), linear_box("input", module.input))
        middle = Box(title="silu(gate) · input")
    elif type(module) is FeedForward:
        first, middle = (linear_box("input", module.input),), _activation(module.activation)
    else:
        return Layer(title="Feed-forward", rows=((unknown_box(module),),), shapes=("(B, T, D)",))
    rows = (first, (middle,), (linear_box("output", module.output),))
    return Layer(title="Feed-forward", rows=rows, shapes=("(B, T, F)", "(B, T, F)", "(B, T, D)"))


def _activation(activation: Any) -> Box:
    if isinstance(activation, nn.Module):
        return module_box(type(activation).__name__, activation)
    function = activation.func if isinstance(activation, partial) else activation
    return Box(title=getattr(function, "__name__", type(function).__name__))


def _cached(module: nn.Module, config: ModelConfig) -> str:
    """The numbers that a plug-in's cache holds for a token, if the plug-in says so."""
    shape = getattr(module, "cache_shape", None)
    if shape is None or config.attention is None:
        return ""
    heads, key, value = shape(config, **config.attention.init_args)
    return f"its cache holds {heads * (key + value):,} numbers per token"
