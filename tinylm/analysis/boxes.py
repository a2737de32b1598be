"""The boxes of a drawing of a network: the title, parameters and operations of a module."""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from tinylm.model.count import count_parameters
from tinylm.model.lora import LoRALinear
from tinylm.model.quantized import QuantizedLinear

TIMES = "\u00d7"
OPERATIONS = 6  # per parameter and token: a multiplication and an addition forward, and twice that backward


@dataclass(frozen=True, kw_only=True)
class Box:
    """A module, or a step without parameters.

    Attributes:
        title: name of the module or step
        lines: details; a pair is a line with a left and a right end
        parameters: number of its own weights; tied weights count for the embedding
        flops: operations of training on one token
    """

    title: str
    lines: tuple[str | tuple[str, str], ...] = ()
    parameters: int = 0
    flops: int = 0


def sizes(linear: Any) -> str:
    """Inputs and outputs of a linear layer."""
    return f"{linear.in_features:,} → {linear.out_features:,}"


def _form(linear: Any) -> list[str]:
    """Bias, adapters and quantization of a linear layer, in words."""
    if isinstance(linear, LoRALinear):
        ranks = ", ".join(str(len(linear.lora_a[name])) for name in linear.active)
        return ["with bias"] * (linear.bias is not None) + [f"+ LoRA, rank {ranks}"] * bool(ranks)
    bits = [linear.kind] if isinstance(linear, QuantizedLinear) else []
    return ["with bias"] * (linear.bias is not None) + bits


def linear_box(title: str, linear: Any, shape: str = "") -> Box:
    """A linear layer, with the shape of its output if that is to be shown."""
    lines = (sizes(linear), *_form(linear), *([shape] if shape else []))
    return replace(module_box(title, linear), lines=lines)


def module_box(title: str, module: nn.Module) -> Box:
    """A module without details."""
    weights = parameters(module)
    return Box(title=title, parameters=weights, flops=OPERATIONS * (weights - idle_parameters(module)))


def parameters(module: nn.Module) -> int:
    """The parameters of a module, LoRA adapters left out."""
    return count_parameters(nn.ModuleList([module]))  # adapters are recognized by a layer's name before their own


def idle_parameters(module: nn.Module) -> int:
    """Parameters that a token does not use."""
    sparse: list[Any] = [each for each in module.modules() if hasattr(each, "active_parameters")]
    return sum(parameters(each) - each.active_parameters for each in sparse)


def unknown_box(module: nn.Module, *notes: str) -> Box:
    """A module of a class that is not tinylm's: its submodules, one line each."""
    children = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Identity)]
    lines = [(f"{name}: {_describe(child)}", f"{parameters(child):,}") for name, child in children]
    own = module.named_parameters(recurse=False)
    lines += [(f"{name}: {_shape(weight)}", f"{weight.numel():,}") for name, weight in own]
    if idle := idle_parameters(module):
        whole = parameters(module)
        lines.append((f"a token uses {whole - idle:,} of", f"{whole:,}"))
    return replace(module_box(type(module).__name__, module), lines=(*lines, *(note for note in notes if note)))


def _shape(weight: torch.Tensor) -> str:
    return f" {TIMES} ".join(f"{size:,}" for size in weight.shape)


def _describe(module: Any) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear | QuantizedLinear):
        return f"{name} {sizes(module)}"
    if isinstance(module, nn.ModuleList):
        runs = [(kind, len(list(group))) for kind, group in groupby(type(each).__name__ for each in module)]
        return ", ".join(f"{count} {TIMES} {kind}" for kind, count in runs)
    return name
