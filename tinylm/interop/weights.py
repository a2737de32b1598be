"""Weights under other names: ours as a family of transformers has them, and back; and safetensors files of either.

Nothing is computed, so that weights come back as they went, bit by bit. What differs is how they are put together:
GPT-2 has queries, keys and values in one matrix and keeps matrices as (inputs, outputs); OPT's first position is row 2.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tinylm.bundle import read_safetensors
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import read_json
from tinylm.interop.families import Family
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What old files have beside weights: causal masks of GPT-2, rotary frequencies.
CONSTANTS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


def export_weights(weights: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """The family's weights from ours.

    Args:
        weights: `TransformerLM.state_dict()`
        config: of that network
        family: one that fits it

    Returns:
        its name -> tensor

    Raises:
        ConfigError: for layers that are not those of the config any more.
    """
    shapes = our_shapes(config, family)
    for name in weights:
        if name not in shapes and name != "head.weight":
            raise ConfigError(f"{name}: an adapted layer has no counterpart in Hugging Face's models; merge it first")
    found = {}
    for theirs, ours in grouped(shapes, family).items():
        parts = [weights[name] if name in weights else _no_bias(shapes[name], weights) for name in ours]
        found[theirs] = _joined(theirs, parts, family).contiguous()
    return found


def import_weights(weights: dict[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our weights from the family's.

    Args:
        weights: its name -> tensor; is emptied, so that what is copied is not kept twice
        config: what its config.json describes
        family: the family

    Returns:
        our name -> tensor, without those of the head where it is the embedding

    Raises:
        DataError: if weights are missing, beyond what the config describes, of other shapes or no numbers.
    """
    shapes = our_shapes(config, family)
    groups = grouped(shapes, family)
    _tidy(weights, config, family)
    wanted = {
        theirs: _joined(theirs, [torch.empty(shapes[name], device="meta") for name in ours], family).shape
        for theirs, ours in groups.items()
    }
    _check(weights, wanted)
    found = {}
    for theirs, ours in groups.items():
        whole = _matrix(theirs, weights.pop(theirs), family)
        if theirs.endswith("embed_positions.weight"):
            whole = whole[family.spare_positions :]
        parts = whole.split([shapes[name][0] for name in ours])
        for name, part in zip(ours, parts, strict=True):
            found[name] = part.contiguous() if len(ours) == 1 else part.clone(memory_format=torch.contiguous_format)
    return found


def our_shapes(config: ModelConfig, family: Family) -> dict[str, torch.Size]:
    """Name and shape of our weights, a head that is the embedding left out; with biases if the family has them."""
    with without_weights():
        model = TransformerLM(dataclasses.replace(config, bias=family.has_biases(config)))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def grouped(names: Mapping[str, object], family: Family) -> dict[str, list[str]]:
    """The name of each of the family's weights, and of ours that it is made of, in their order."""
    groups = defaultdict(list)
    for name in names:
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\d+", module)
        template = family.weights[re.sub(r"\d+", "{}", module, count=1)]
        groups[f"{template.format(layer and layer[0])}.{kind}"].append(name)
    return groups


def _joined(theirs: str, parts: list[Tensor], family: Family) -> Tensor:
    """One of the family's weights from the parts of ours."""
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if theirs.endswith("embed_positions.weight"):
        whole = torch.cat([whole.new_zeros(family.spare_positions, whole.shape[1]), whole])
    return _matrix(theirs, whole, family)


def _matrix(theirs: str, tensor: Tensor, family: Family) -> Tensor:
    """A weight turned round, if it is a matrix that the family keeps so; twice is as it was."""
    return tensor.T if family.transposed and ".h." in theirs and tensor.dim() == 2 else tensor


def _no_bias(shape: torch.Size, weights: Mapping[str, Tensor]) -> Tensor:
    assert len(shape) == 1  # weights are never made up
    return torch.zeros(shape, dtype=weights["embedding.weight"].dtype)


# --- what a file should have


def _tidy(weights: dict[str, Tensor], config: ModelConfig, family: Family) -> None:
    """Takes out constants and a head that repeats the embedding, and completes names that lack their beginning."""
    for name in [name for name in weights if CONSTANTS.fullmatch(name)]:
        del weights[name]
    prefix = family.weights["embedding"].split(".")[0] + "."
    if not any(name.startswith(prefix) for name in weights):
        for name in [name for name in weights if not name.startswith("lm_head.")]:
            weights[prefix + name] = weights.pop(name)
    head, embedding = weights.get("lm_head.weight"), weights.get(family.weights["embedding"] + ".weight")
    if config.tie_embeddings and head is not None and embedding is not None:
        if not torch.equal(head, embedding):
            raise DataError("lm_head.weight: differs from the embedding, and tie_word_embeddings says they are one")
        del weights["lm_head.weight"]


def _check(weights: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    for problem, names in (
        ("missing", wanted.keys() - weights.keys()),
        ("not of this architecture", weights.keys() - wanted.keys()),
    ):
        if names:
            raise DataError(f"weights {problem}: {_some(sorted(names))}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise DataError(f"{name}: has shape {tuple(weights[name].shape)}, config.json says {tuple(shape)}")
        if weights[name].dtype not in FLOATS:
            raise DataError(f"{name}: is of type {weights[name].dtype}; quantized weights are not read")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# --- files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in a folder's model.safetensors, or in the shards that its index lists.

    Raises:
        MissingInputError: if there are none, or a shard is missing.
        DataError: if a file is damaged, or no safetensors.
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
                f"{folder / name}: is a pickle, which can execute anything, and is not read; convert it to safetensors"
                " (transformers: from_pretrained, then save_pretrained)"
            )
    raise MissingInputError(f"{folder}: has no {WEIGHTS} and no {INDEX}")


def _shards(index: Path) -> list[str]:
    values = read_json(index)
    table = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise DataError(f"{index}: is damaged: it should have a weight_map of names of files")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{index}: weight_map has {name!r}, which is no file of this folder")
    return names
