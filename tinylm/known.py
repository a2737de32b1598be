"""Checks that a model is standard: exactly what its config describes.

Some code relies on the config instead of calling the modules: the fast decoder repeats the computation, an export
renames the weights, a profile counts FLOPs. For a modified model (a gate in the attention, a subclass of a layer, a
forward hook), such code would silently describe a different model, so it first calls these checks.

A model is standard if it equals a new one of its config in everything that affects its output: the same modules under
the same names, each of exactly that type and with its own methods; parameters and buffers of the same names and shapes,
tied where the config ties them; the same attributes. A quantized layer, or one with LoRA adapters, may stand for a
linear layer. Weights may have any value, dropout any probability.

A config with plug-ins describes its model only in part, since their code is the user's. A model with plug-ins is
therefore standard only for functions that need nothing but the modules, such as saving them, and say so (`plugins`).
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tinylm.errors import ConfigError
from tinylm.kernels.block_masks import VisibleBlocks, attend_blocks
from tinylm.kernels.rms_norm import tuned_rms_norm
from tinylm.model.attention import Attention, attend_fused, attend_plain, visible_keys
from tinylm.model.empty import without_weights
from tinylm.model.feedforward import FeedForward, SwiGLU
from tinylm.model.lora import LoRALinear
from tinylm.model.normalization import HeadsRMSNorm, RMSNorm, rms_norm
from tinylm.model.positional import PositionTable
from tinylm.model.quantized import Int4Linear, Int8Linear, QuantizedLinear
from tinylm.model.size import empty_model
from tinylm.model.transformer import Block, TransformerLM

TYPES = (TransformerLM, Block, Attention, FeedForward, SwiGLU, RMSNorm, HeadsRMSNorm, PositionTable, Int8Linear,
         Int4Linear, LoRALinear, nn.LayerNorm, nn.Linear, nn.Embedding, nn.Dropout, nn.Identity,
         nn.ModuleList)  # fmt: skip
FREE = {"training", "dropout", "p", "scales", "dropouts", "active"}  # attributes that may differ: dropout, LoRA
# functions, and a class of them, that compute the same
EQUIVALENT = ((attend_plain, attend_fused, attend_blocks), (visible_keys, VisibleBlocks), (rms_norm, tuned_rms_norm))


def unknown_part(model: nn.Module, *, hooks: bool = True, plugins: bool = False) -> str | None:
    """Describes the first part of a model that its config does not describe; None for a standard model.

    `hooks`: whether forward hooks count; when a model is saved, for example, they cannot be stored anyway. `plugins`:
    whether plug-ins of the config are allowed.
    """
    if type(model) is not TransformerLM:
        return f"the model is {_a(model)}, not a TransformerLM"
    for field, part in {} if plugins else model.config.parts.items():
        return f"{field} is the plug-in {part}"
    if hooks and (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks):
        return "all modules have a forward hook"
    return next(chain(_structure(model, empty_model(model.config), hooks), _classes()), None)


def mixed_part(model: nn.Module) -> str | None:
    """Describes the first weight whose type or device differs from the first weight's; None if there is none."""
    weights = list(model.named_parameters())
    first, standard = weights[0]
    for name, weight in weights:
        if (weight.dtype, weight.device) != (standard.dtype, standard.device):
            return f"{name} is {_kind(weight)}, {first} is {_kind(standard)}"
    return None


def check_known(
    model: nn.Module, purpose: str, *, adapters: bool = False, hooks: bool = True, plugins: bool = False
) -> None:
    """Raises ConfigError, naming the part, for a model with a part that its config does not describe.

    Args:
        model: the model
        purpose: beginning of the message: the operation that requires a standard model
        adapters: whether LoRA adapters are allowed
        hooks: whether forward hooks count
        plugins: whether plug-ins of the config are allowed
    """
    found = unknown_part(model, hooks=hooks, plugins=plugins)
    if found is not None:
        raise ConfigError(f"{purpose} requires a model that is exactly what its config describes, but {found}")
    adapted = next((name for name, module in model.named_modules() if isinstance(module, LoRALinear)), None)
    if adapted is not None and not adapters:
        raise ConfigError(f"{purpose}: {adapted} has LoRA adapters; merge_lora and remove_lora first")


def check_deterministic(model: nn.Module) -> None:
    """Raises ConfigError, naming the layer, if dropout makes the model's output random."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        rates = (module.p,) if isinstance(module, nn.Dropout) else getattr(module, "dropouts", {}).values()
        rates = (module.dropout,) if isinstance(module, Attention) else rates
        if any(rate > 0 for rate in rates):
            raise ConfigError(f"{name} applies dropout, because the model is in training mode; call model.eval()")


# --- the comparison


@lru_cache(maxsize=256)
def _quantized(kind: type[QuantizedLinear], inputs: int, outputs: int, bias: bool, options: Any) -> QuantizedLinear:
    with without_weights():
        return kind(inputs, outputs, bias, **dict(options))


def _structure(model: TransformerLM, fresh: TransformerLM, hooks: bool) -> Iterator[str]:
    """Differences from a new model, found in one pass, since this check precedes every generated text."""
    expected = dict(fresh.named_modules(remove_duplicate=False))
    tied = {("head.weight", "embedding.weight")} if model.config.tie_embeddings else set()
    adapters: set[str] = set()  # names of submodules of LoRA layers
    first: dict[int, str] = {}  # id of each weight -> its first name
    for name, module in model.named_modules(remove_duplicate=False):
        twin = expected.pop(name, None)
        if name in adapters and type(module) is nn.ParameterDict:
            continue
        if twin is None:
            yield f"{name}, {_a(module)}, is not one of its modules"
            return
        if type(twin) is nn.Linear and type(module) is LoRALinear:
            adapters |= {f"{name}.lora_a", f"{name}.lora_b"}
        elif type(twin) is nn.Linear and isinstance(module, QuantizedLinear) and type(module) in TYPES:
            sizes = twin.in_features, twin.out_features, twin.bias is not None
            twin = _quantized(type(module), *sizes, tuple(module.options.items()))
        elif type(module) is not type(twin):
            same_name = type(module).__name__ == type(twin).__name__
            found = f"a {type(module).__module__}.{type(module).__name__}" if same_name else _a(module)
            yield f"{name} is {found}, not {_a(twin)}"
            return
        yield from _differences(name, module, *_expected(twin))
        for key, weight in module._parameters.items():
            full = f"{name}.{key}" if name else key
            other = full if weight is None else first.setdefault(id(weight), full)
            if other != full and (full, other) not in tied:
                yield f"{full} is {other}"
        if hooks and (module._forward_hooks or module._forward_pre_hooks):
            yield f"{name or 'the model'} has a forward hook"
    yield from (f"{name} is missing" for name in expected)
    if tied and model.head.weight is not model.embedding.weight:
        yield "head.weight is not embedding.weight, although tie_embeddings is on"


@lru_cache(maxsize=2048)
def _expected(twin: nn.Module) -> tuple[dict[str, dict[str, tuple[type, torch.Size]]], dict[str, Any]]:
    """A new module's parameter and buffer shapes, and the attributes that affect its output."""
    tensors = {
        kind: {key: (type(each), each.shape) for key, each in vars(twin)[kind].items() if each is not None}
        for kind in ("_parameters", "_buffers")
    }
    free = {key for key in vars(twin) if key in FREE or (key[0] == "_" and key != "_exact")}
    return tensors, {key: value for key, value in vars(twin).items() if key not in free}


def _differences(
    name: str, module: nn.Module, tensors: dict[str, dict[str, tuple[type, torch.Size]]], attributes: dict[str, Any]
) -> Iterator[str]:
    """Differences of one module from its counterpart in a new model."""
    own, prefix = vars(module), f"{name}." if name else ""
    for kind, shapes in tensors.items():
        found = {key: tensor for key, tensor in own[kind].items() if tensor is not None}
        for key, tensor in found.items():
            if key not in shapes:
                yield f"{prefix}{key} is not one of its {kind[1:]}"
            elif (type(tensor), tensor.shape) != shapes[key]:
                yield f"{prefix}{key} is a {type(tensor).__name__} {tuple(tensor.shape)}, not {tuple(shapes[key][1])}"
        yield from (f"{prefix}{key} is missing" for key in shapes if key not in found)
    methods = _METHODS.get(type(module), {})  # none for a module in a plug-in, whose attributes are not checked
    yield from (f"{prefix}{key} is not the method of its class" for key in own.keys() & methods.keys())
    for key, value in attributes.items() if methods else ():
        if key not in own or not _same(own[key], value):
            yield f"{prefix}{key} is {_shown(own.get(key))}, not {_shown(value)}"
    if own.get("_compiled_call_impl") is not None:
        yield f"{name or 'the model'} was compiled"


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return value is expected or (isinstance(value, Tensor) and torch.equal(value, expected))
    for alternatives in EQUIVALENT:
        if expected in alternatives:
            return value in alternatives or type(value) in alternatives
    if isinstance(expected, partial):  # an activation with arguments
        return isinstance(value, partial) and (value.func, value.keywords) == (expected.func, expected.keywords)
    return value is expected or (type(value) is type(expected) and value == expected)


def _classes() -> Iterator[str]:
    """Methods that were replaced in the classes themselves."""
    for kind, methods in _METHODS.items():
        for key, method in methods.items():
            if getattr(kind, key) is not method:
                yield f"{kind.__name__}.{key} was replaced after tinylm was imported"


def _methods(kind: type) -> dict[str, Any]:
    """Methods and properties of a class, including inherited ones."""
    own = {key: getattr(kind, key) for key in dir(kind) if not key.startswith("__")}
    return {key: value for key, value in own.items() if isinstance(value, FunctionType | property)}


_METHODS: dict[type, dict[str, Any]] = {kind: _methods(kind) for kind in TYPES}


def _a(module: nn.Module) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _kind(weight: Tensor) -> str:
    return f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"


def _shown(value: Any) -> str:
    """Shows a value in a message: the name of a function, the type of other objects."""
    if isinstance(value, int | float | str | list | None):
        return repr(value)
    return getattr(value, "__name__", None) or f"a {type(value).__name__}"
