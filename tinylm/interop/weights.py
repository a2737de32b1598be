"""Weights: renamed to the names of a Hugging Face family and back, and their safetensors files.

Tensors are only rearranged, so weights survive export and import bit by bit. GPT-2 concatenates
queries, keys and values in one matrix and stores matrices as (inputs, outputs); GPT-NeoX concatenates those of each
head; OPT's first position is row 2.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tinylm.bundle import read_safetensors
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import read_json
from tinylm.interop.families import Family
from tinylm.interop.forms import check_names, grouped, weight_shapes
from tinylm.model import ModelConfig
from tinylm.model.size import check_size

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Buffers in old files: causal masks, rotary frequencies.
BUFFERS = re.compile(
    r"(transformer\.)?h\.\d+\.attn\.(attention\.)?(masked_)?bias"
    r"|(gpt_neox\.)?layers\.\d+\.attention\.(masked_)?bias|.*\.rotary_emb\.inv_freq"
)


def export_weights(weights: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """The family's weights, by name, from the `state_dict()` of a standard model that the family fits."""
    shapes = weight_shapes(family.with_biases(config))
    zeros = weights["embedding.weight"].new_zeros  # for the biases that a family always has
    return {
        theirs: _join(
            theirs, [weights[name] if name in weights else zeros(shapes[name]) for name in ours], config, family
        )
        for theirs, ours in grouped(shapes, family.modules).items()
    }


def import_weights(weights: dict[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our weights, by name, without those of a tied head. Empties `weights` to save memory.

    Raises:
        DataError: if weights are missing, unexpected, of another shape, or not floating point.
    """
    try:
        check_size(config, sum(each.numel() for each in weights.values()), len(weights))
    except ConfigError as error:
        raise DataError(f"config.json: {error}") from error
    shapes = weight_shapes(family.with_biases(config))
    groups = grouped(shapes, family.modules)
    _normalize(weights, config, family)
    expected = {
        theirs: _join(theirs, [torch.empty(shapes[name], device="meta") for name in ours], config, family).shape
        for theirs, ours in groups.items()
    }
    _check(weights, expected)
    found = {}
    for theirs, ours in groups.items():
        whole = _orient(theirs, weights.pop(theirs), family)
        if theirs.endswith("embed_positions.weight"):
            whole = whole[family.spare_positions :]
        for name, part in zip(ours, _split(whole, [shapes[name][0] for name in ours], config, family), strict=True):
            found[name] = part.contiguous() if len(ours) == 1 else part.clone(memory_format=torch.contiguous_format)
    return found


def _join(theirs: str, parts: list[Tensor], config: ModelConfig, family: Family) -> Tensor:
    """One of the family's weights from ours."""
    if len(parts) > 1 and family.interleaved:
        heads = [part.unflatten(0, (config.num_heads, -1)) for part in parts]  # (H, E, ...) each
        whole = torch.stack(heads, dim=1).flatten(0, 2)  # (H * 3 * E, ...)
    else:
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if theirs.endswith("embed_positions.weight"):
        whole = torch.cat([whole.new_zeros(family.spare_positions, whole.shape[1]), whole])
    return _orient(theirs, whole, family).contiguous()


def _split(whole: Tensor, rows: list[int], config: ModelConfig, family: Family) -> list[Tensor]:
    """The parts that `_join` joined, with these numbers of rows."""
    if len(rows) > 1 and family.interleaved:
        parts = whole.unflatten(0, (config.num_heads, len(rows), -1)).unbind(1)  # (H, E, ...) each
        return [part.flatten(0, 1) for part in parts]
    return list(whole.split(rows))


def _orient(theirs: str, tensor: Tensor, family: Family) -> Tensor:
    """Transposes a matrix if the family stores it transposed; the inverse of itself."""
    return tensor.T if family.transposed and ".h." in theirs and tensor.dim() == 2 else tensor


# --- checks of imported weights


def _normalize(weights: dict[str, Tensor], config: ModelConfig, family: Family) -> None:
    """Removes buffers and a copy of a tied head, and completes names that lack their prefix."""
    for name in [name for name in weights if BUFFERS.fullmatch(name)]:
        del weights[name]
    prefix, head = family.modules["embedding"].split(".")[0] + ".", family.modules["head"] + "."
    for name in [name for name in weights if name.startswith("lm_head.") and not head.startswith("lm_head.")]:
        weights[name.replace("lm_head.", head)] = weights.pop(name)  # newer name of GPT-NeoX's head
    if not any(name.startswith(prefix) for name in weights):
        for name in [name for name in weights if not name.startswith(head)]:
            weights[prefix + name] = weights.pop(name)
    tied, embedding = weights.get(head + "weight"), weights.get(family.modules["embedding"] + ".weight")
    if config.tie_embeddings and tied is not None and embedding is not None:
        if not torch.equal(tied, embedding):
            raise DataError(f"{head}weight: differs from the embedding, although tie_word_embeddings is true")
        del weights[head + "weight"]


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    check_names(weights, expected, "not of this architecture")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise DataError(f"{name}: has shape {tuple(weights[name].shape)}, config.json says {tuple(shape)}")
        if weights[name].dtype not in FLOATS:
            raise DataError(f"{name}: has dtype {weights[name].dtype}; quantized weights are not supported")
        if not weights[name].isfinite().all():
            raise DataError(f"{name}: has weights that are not finite; use another checkpoint")


# --- files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in a folder's model.safetensors, or in the shards that its index lists.

    Raises:
        MissingInputError: if there are no weights, or a shard is missing.
        DataError: if a file is damaged, or not a safetensors file.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        found: dict[str, Tensor] = {}
        for name in _shards(folder / INDEX):
            found |= read_safetensors(folder / name)
        return found
    for name in PICKLES:
        if (folder / name).is_file():
            raise DataError(
                f"{folder / name}: is a pickle, which can execute code and is not read; convert it to safetensors "
                "(transformers: from_pretrained, then save_pretrained)"
            )
    raise MissingInputError(f"{folder}: has no {WEIGHTS} and no {INDEX}")


def _shards(index: Path) -> list[str]:
    values = read_json(index)
    table = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise DataError(f"{index}: is damaged: it must have a weight_map of file names")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{index}: weight_map names {name!r}, which is not a file of this folder")
    return names
