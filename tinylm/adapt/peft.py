"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A third file, `adapter_checksums.json`, holds their SHA-256, which PEFT ignores and `load_adapter` verifies. Layers have
the names of the Hugging Face model that `export_huggingface` writes, so `peft` loads an adapter onto the exported base.
A model without such a counterpart keeps our names.

If that model has one matrix for several of ours, like GPT-2 for queries, keys and values, its adapter is exact in both
directions. On reading, B is split by rows and each of our layers gets a copy of A. On writing, the As are stacked and
the Bs become the blocks of one matrix, so ranks add up; if all As are equal, A is written once.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tinylm.adapt.lora import add_adapters, check_unquantized, lora_layers
from tinylm.adapt.peft_files import CHECKSUMS, CONFIG, WEIGHTS, checksums, rank_and_scale, read_adapter
from tinylm.checks import require
from tinylm.errors import ConfigError, DataError, NumericError
from tinylm.files import atomic_folder, write_json
from tinylm.interop.families import choose_family
from tinylm.interop.weights import export_weights
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.lora import LoRALinear
from tinylm.targets import FolderKind, check_target

ADAPTER = FolderKind("an adapter", frozenset((CONFIG, WEIGHTS, CHECKSUMS)), CHECKSUMS)
PREFIX = "base_model.model."  # of the weights in PEFT's files
KEY = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")

# --- layers of both sides


class Part(NamedTuple):
    """One of our linear layers within a PEFT layer: its name, and its rows of that layer's output, int64 (outputs,)."""

    path: str
    rows: Tensor


@dataclass(frozen=True)
class Layout:
    """The linear layers under PEFT's names.

    Attributes:
        parts: PEFT layer -> our layers that it consists of
        transposed: names of layers whose weights are stored as (inputs, outputs)
    """

    parts: dict[str, list[Part]]
    transposed: set[str]


def _layout(model: TransformerLM) -> Layout:
    """The layout of the model's counterpart in transformers, found by exporting the numbers of rows as weights."""
    sizes = {name: layer.out_features for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    try:
        family = choose_family(model.config)
    except ConfigError:
        return Layout({name: [Part(name, torch.arange(size))] for name, size in sizes.items()}, set())
    block = {name: size for name, size in sizes.items() if name.startswith("blocks.0.")}
    numbers, bases, total = {"embedding.weight": torch.zeros(1, model.config.d_model, dtype=torch.int32)}, {}, 0
    for name, size in block.items():  # the number of a row is unique in the block
        bases[name] = torch.arange(total, total + size, dtype=torch.int32)
        numbers[f"{name}.weight"] = bases[name][:, None].expand(size, model.get_submodule(name).in_features)
        total += size
    written = export_weights(numbers, replace(model.config, num_layers=1, vocab_size=1), family)
    theirs = {family.modules[re.sub(r"\d+", "{}", name, count=1)] for name in block}
    parts, transposed = {}, set()
    for template in sorted(theirs):
        table = written[f"{template.format(0)}.weight"]
        by_rows = bool((table == table[:, :1]).all())
        found = {int(number): row for row, number in enumerate(table[:, 0] if by_rows else table[0])}
        for layer in range(model.config.num_layers):
            name = template.format(layer)
            transposed |= set() if by_rows else {name}
            parts[name] = [
                Part(ours.replace("blocks.0.", f"blocks.{layer}.", 1), torch.tensor([found[int(i)] for i in base]))
                for ours, base in bases.items()
                if int(base[0]) in found
            ]
    parts[family.modules["head"]] = [Part("head", torch.arange(model.config.vocab_size))]
    return Layout(parts, transposed)


# --- writing


def save_adapter(
    folder: str | Path, model: TransformerLM, name: str = "default", base: str = "", overwrite: bool = False
) -> None:
    """Saves one adapter without its base model, atomically, in PEFT's format.

    Args:
        folder: the folder to write
        model: the model with the adapter
        name: the adapter's name
        base: path of the base model, recorded for users of the adapter
        overwrite: replace an adapter that tinylm has saved there

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced, or is something else.
        ConfigError: if the model has no such adapter.
    """
    check_target(folder, ADAPTER, overwrite)
    adapted = {path: layer for path, layer in lora_layers(model).items() if name in layer.lora_a}
    require(len(adapted) > 0, f"adapter {name}: the model has no such adapter")
    layout = _layout(model)
    matrices: dict[str, tuple[Tensor, Tensor, float]] = {}
    for theirs, parts in layout.parts.items():
        if any(part.path in adapted for part in parts):
            matrices[theirs] = _joined(parts, {path: _matrices(layer, name) for path, layer in adapted.items()})
    dropout = next(iter(adapted.values())).dropouts[name]
    config = _config(matrices, dropout, base) | {"fan_in_fan_out": not layout.transposed.isdisjoint(matrices)}
    weights = {
        f"{PREFIX}{theirs}.lora_{kind}.weight": matrix.detach().cpu().contiguous()
        for theirs, (a, b, _) in matrices.items()
        for kind, matrix in (("A", a), ("B", b))
    }
    with atomic_folder(folder) as new:
        write_json(new / CONFIG, config)
        save_file(weights, new / WEIGHTS)
        write_json(new / CHECKSUMS, checksums(new))


def _matrices(layer: Any, name: str) -> tuple[Tensor, Tensor, float]:
    """A (rank, inputs), B (outputs, rank) and the scale of an adapter."""
    return layer.lora_a[name].detach(), layer.lora_b[name].detach(), layer.scales[name]


def _joined(parts: list[Part], adapters: dict[str, tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    """One adapter from those of the parts that have one: A (rank, inputs), B (outputs, rank) and the scale."""
    outputs = sum(len(part.rows) for part in parts)
    found = [(part.rows.to(b.device), a, b, scale) for part in parts if part.path in adapters
             for a, b, scale in [adapters[part.path]]]  # fmt: skip
    _, first, _, scale = found[0]
    if all(torch.equal(a, first) and each == scale for _, a, _, each in found):
        whole = first.new_zeros(outputs, len(first))
        for rows, _, b, _ in found:
            whole[rows] = b
        return first, whole, scale
    whole, start = first.new_zeros(outputs, sum(len(a) for _, a, _, _ in found)), 0
    for rows, a, b, each in found:
        whole[rows, start : start + len(a)] = b * (each / scale)
        start += len(a)
    return torch.cat([a for _, a, _, _ in found]), whole, scale


def _config(matrices: dict[str, tuple[Tensor, Tensor, float]], dropout: float, base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`. Layers whose rank or alpha differs from the first layer's are listed."""
    ranks = {name: len(a) for name, (a, _, _) in matrices.items()}
    alphas = {name: scale * ranks[name] for name, (_, _, scale) in matrices.items()}
    first = next(iter(matrices))
    patterns = {
        field: {re.escape(name): value for name, value in values.items() if value != values[first]}
        for field, values in (("rank_pattern", ranks), ("alpha_pattern", alphas))
    }
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": ranks[first], "lora_alpha": alphas[first], **patterns, "lora_dropout": dropout, "bias": "none",
        "target_modules": [*matrices],
    }  # fmt: skip


# --- reading


def load_adapter(folder: str | Path, model: TransformerLM, name: str = "default") -> None:
    """Adds a saved adapter to a model, under the name `name`, and freezes everything but adapters.

    The model is unchanged if the adapter is refused.

    Raises:
        MissingInputError: if a file is missing.
        DataError: if a file is damaged, does not fit the model, or has a field that tinylm does not support.
        NumericError: if a weight is NaN or infinite.
        ConfigError: if the name is in use, or the model's layers cannot be adapted.
    """
    folder = Path(folder)
    check_unquantized(model)
    config, weights = read_adapter(folder)
    parts = {name: [Part(name, torch.arange(layer.out_features))] for name, layer in model.named_modules()
             if isinstance(layer, nn.Linear)} | _layout(model).parts  # fmt: skip
    found: dict[str, tuple[int, float, Tensor, Tensor]] = {}  # our layer -> rank, scale, A, B
    for theirs, (a, b) in _pairs(folder, weights, parts, model.config).items():
        rank, scale = rank_and_scale(folder, config, theirs, head=parts[theirs][0].path == "head")
        outputs = sum(len(part.rows) for part in parts[theirs])
        layer = model.get_submodule(parts[theirs][0].path)
        for key, matrix, shape in (("A", a, (rank, layer.in_features)), ("B", b, (outputs, rank))):
            if matrix.shape != shape:
                key = f"{PREFIX}{theirs}.lora_{key}.weight"
                raise DataError(f"{folder}: {key} is not {shape}; the adapter belongs to another model")
        found |= {part.path: (rank, scale, a, b[part.rows]) for part in parts[theirs]}
    sizes = {path: (rank, scale * rank) for path, (rank, scale, _, _) in found.items()}
    add_adapters(model, sizes, float(config.get("lora_dropout") or 0.0), name)
    for path, (_, scale, a, b) in found.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, LoRALinear)
        layer.scales[name] = scale
        layer.lora_a[name].data.copy_(a)
        layer.lora_b[name].data.copy_(b)


def _pairs(
    folder: Path, weights: dict[str, Tensor], parts: dict[str, list[Part]], model: ModelConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each adapted layer, by its PEFT name."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in sorted(weights.items()):
        match = KEY.fullmatch(key)
        if match is None or match[1] not in parts:
            raise DataError(f"{folder}: has {key}, which the model lacks; the adapter belongs to another model")
        if not tensor.isfinite().all():
            raise NumericError(f"{folder}: {key} has weights that are not finite; use another adapter")
        found[match[1]][match[2]] = tensor
    for theirs, matrices in found.items():
        for kind in {"A", "B"} - matrices.keys():
            raise DataError(f"{folder}: {PREFIX}{theirs}.lora_{kind}.weight is missing; save the adapter again")
        if model.tie_embeddings and parts[theirs][0].path == "head":
            raise DataError(f"{folder}: adapts {theirs}, which this model ties to the embedding (tie_embeddings)")
    if not found:
        raise DataError(f"{folder / WEIGHTS}: has no weights of an adapter; save the adapter again")
    return {theirs: (matrices["A"], matrices["B"]) for theirs, matrices in found.items()}
