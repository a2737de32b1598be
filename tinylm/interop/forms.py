"""Formats of other programs that each hold one kind of network and have no fields for other kinds.

A config fits such a format if the format's program supports the value of every field that changes logits. Fields that
no format mentions must have their default value, so a new field of ModelConfig is refused until a format supports it.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tinylm.errors import DataError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights

SIZES = {"vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "max_seq_len", "tie_embeddings"}
TRAINING = {
    "dropout", "document_mask", "zero_init_output", "mup_base_width", "activation_checkpointing", "attention_kernel",
}  # fmt: skip


def misfits(config: ModelConfig, fits: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """The fields of a config that a format cannot express.

    Args:
        config: the config
        fits: field -> the values that the format's program supports; () stands for any value
    """
    values = config.to_dict() | dict.fromkeys(_idle(config))
    free = SIZES | TRAINING | {name for name, fitting in fits.items() if not fitting}
    defaults = {field.name: (field.default,) for field in dataclasses.fields(config)}
    return [name for name in values if name not in free and values[name] not in (defaults | dict(fits))[name]]


def _idle(config: ModelConfig) -> list[str]:
    """The fields without effect, because their value is the default that the other fields imply."""
    full = config.sliding_window is None or config.sliding_window >= config.max_seq_len
    return [
        name
        for name, idle in (
            ("d_head", config.head_dim * config.num_heads == config.d_model),
            ("qkv_bias", config.qkv_bias == config.bias),
            ("attention_scale", config.attention_scale == config.head_dim**-0.5),
            ("sliding_window", full or "S" not in config.layer_kinds),
            ("layer_pattern", "N" not in config.layer_kinds and (full or "S" not in config.layer_kinds)),
        )
        if idle
    ]


def weight_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """The shapes of a config's weights, by name, without a tied head."""
    with without_weights():
        shapes = {name: tensor.shape for name, tensor in TransformerLM(config).state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def modules(blocks: str, block: Mapping[str, str], **others: str) -> dict[str, str]:
    """A table of module names, ours -> theirs. `block` has those within a block, relative to `blocks`."""
    return {f"blocks.{{}}.{ours}": f"{blocks}.{{}}.{theirs}" for ours, theirs in block.items()} | others


def grouped(names: Iterable[str], table: Mapping[str, str]) -> dict[str, list[str]]:
    """The name of each foreign weight -> the names of our weights in it, in order, by a table of `modules`."""
    groups = defaultdict(list)
    for name in names:
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\d+", module)
        template = table[re.sub(r"\d+", "{}", module, count=1)]
        groups[f"{template.format(layer and layer[0])}.{kind}"].append(name)
    return groups


def check_names(weights: Iterable[str], expected: Iterable[str], unexpected: str) -> None:
    """Raises DataError, naming the weights, if some are missing or unexpected; `unexpected` describes the latter."""
    found, wanted = {*weights}, {*expected}
    for problem, names in (("missing", sorted(wanted - found)), (unexpected, sorted(found - wanted))):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise DataError(f"weights {problem}: {', '.join(names[:4])}{more}")


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raises DataError, naming the weight, unless there are exactly the expected weights, of the expected shapes."""
    check_names(weights, expected, "unknown")
    for name, shape in expected.items():
        found = weights[name]
        if found.shape != shape:
            raise DataError(f"{name}: has shape {tuple(found.shape)}, the config says {tuple(shape)}")
        if not found.is_floating_point():
            raise DataError(f"{name}: has dtype {str(found.dtype).removeprefix('torch.')}, not floating point")


def swap_rotary_pairs(tensor: Tensor, head_dim: int, interleaved: bool) -> Tensor:
    """Reorders the rows of a query or key projection between the two layouts of rotary pairs.

    Within a head, tinylm rotates dimensions (i, i + E/2) together, and the interleaved layout (2i, 2i + 1).

    Args:
        tensor: weight (heads * E, D) or bias (heads * E,)
        head_dim: E
        interleaved: the layout of the result

    Returns:
        a contiguous tensor of the same shape
    """
    halves = (2, head_dim // 2) if interleaved else (head_dim // 2, 2)
    split = tensor.reshape(-1, *halves, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape).contiguous()
