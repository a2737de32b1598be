"""Whether a network is exactly the one that its config describes.

Some code knows a network by its config instead of asking its modules: the fast decoder repeats the computation, an
export renames the weights, a profile counts FLOPs. On a network that somebody has changed (a gate in the attention, a
subclass of a layer, a forward hook) such code would go on and be right about another network. So it asks here first.

A network is known if it equals a fresh one of its config in everything that acts on its output: the same modules at the
same places, each of exactly that type with its own methods; parameters and buffers of the same names and shapes, tied
where the config ties them; the same attributes. Where the fresh one has a plain linear layer, one in few bits or one
with LoRA adapters is known too. Weights may have any value, and dropout any probability.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tinylm.errors import ConfigError
from tinylm.model.attention import Attention, attend_fused, attend_plain
from tinylm.model.config import ModelConfig
from tinylm.model.empty import without_weights
from tinylm.model.feedforward import FeedForward, SwiGLU
from tinylm.model.lora import LoRALinear
from tinylm.model.normalization import LayerNorm, RMSNorm
from tinylm.model.positional import PositionTable
from tinylm.model.quantized import Int4Linear, Int8Linear, QuantizedLinear
from tinylm.model.transformer import Block, TransformerLM

TYPES = (TransformerLM, Block, Attention, FeedForward, SwiGLU, LayerNorm, RMSNorm, PositionTable, Int8Linear,
         Int4Linear, LoRALinear, nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.ModuleList)  # fmt: skip
FREE = {"training", "dropout", "p", "scales", "dropouts", "active"}  # attributes that may differ: dropout, LoRA's own


def unknown_part(model: nn.Module, *, hooks: bool = True) -> str | None:
    """The first part of a network that its config does not describe, in words; None if there is none.

    Args:
        model: the network
        hooks: whether forward hooks count; a file, for one, holds none anyway
    """
    if type(model) is not TransformerLM:
        return f"the network is {_a(model)}, not a TransformerLM"
    if hooks and (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks):
        return "all modules have a forward hook"
    return next(chain(_structure(model, _fresh(model.config), hooks), _classes()), None)


def mixed_part(model: nn.Module) -> str | None:
    """The first weight of another type or on another device than the first one of all, in words; None: all alike."""
    weights = list(model.named_parameters())
    first, standard = weights[0]
    for name, weight in weights:
        if (weight.dtype, weight.device) != (standard.dtype, standard.device):
            return f"{name} is {_kind(weight)}, {first} is {_kind(standard)}"
    return None


def check_known(model: nn.Module, purpose: str, *, adapters: bool = False, hooks: bool = True) -> None:
    """Refuses a network with a part that its config does not describe.

    Args:
        model: the network
        purpose: what needs to know it; begins the message
        adapters: whether layers with LoRA adapters are allowed
        hooks: as in `unknown_part`

    Raises:
        ConfigError: naming the part.
    """
    found = unknown_part(model, hooks=hooks)
    if found is not None:
        raise ConfigError(f"{purpose} needs a network that is exactly its config's, and {found}")
    adapted = next((name for name, module in model.named_modules() if isinstance(module, LoRALinear)), None)
    if adapted is not None and not adapters:
        raise ConfigError(f"{purpose}: {adapted} has LoRA adapters; merge_lora and remove_lora first")


def check_deterministic(model: nn.Module) -> None:
    """Refuses a network whose output is random: dropout in training mode.

    Raises:
        ConfigError: naming the layer.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        rates = (module.p,) if isinstance(module, nn.Dropout) else getattr(module, "dropouts", {}).values()
        rates = (module.dropout,) if isinstance(module, Attention) else rates
        if any(rate > 0 for rate in rates):
            raise ConfigError(f"{name} drops activations at random: the network is in training mode; call model.eval()")


# --- the comparison


@lru_cache(maxsize=4)
def _fresh(config: ModelConfig) -> TransformerLM:
    with without_weights():
        return TransformerLM(config)


@lru_cache(maxsize=256)
def _rounded(kind: type[QuantizedLinear], inputs: int, outputs: int, bias: bool, options: Any) -> QuantizedLinear:
    with without_weights():
        return kind(inputs, outputs, bias, **dict(options))


def _structure(model: TransformerLM, fresh: TransformerLM, hooks: bool) -> Iterator[str]:
    """What is unlike a fresh network; one pass over the modules, since a text is begun in less than a millisecond."""
    expected = dict(fresh.named_modules(remove_duplicate=False))
    tied = {("head.weight", "embedding.weight")} if model.config.tie_embeddings else set()
    adapters: set[str] = set()  # names of what lies inside a layer with adapters
    first: dict[int, str] = {}  # each weight's id and name
    for name, module in model.named_modules(remove_duplicate=False):
        twin = expected.pop(name, None)
        if name in adapters and type(module) is nn.ParameterDict:
            continue
        if twin is None:
            yield f"{name}, {_a(module)}, is none of its modules"
            return
        if type(twin) is nn.Linear and type(module) is LoRALinear:
            adapters |= {f"{name}.lora_a", f"{name}.lora_b"}
        elif type(twin) is nn.Linear and isinstance(module, QuantizedLinear) and type(module) in TYPES:
            sizes = twin.in_features, twin.out_features, twin.bias is not None
            twin = _rounded(type(module), *sizes, tuple(module.options.items()))
        elif type(module) is not type(twin):
            alike = type(module).__name__ == type(twin).__name__
            found = f"a {type(module).__module__}.{type(module).__name__}" if alike else _a(module)
            yield f"{name} is {found}, not {_a(twin)}"
            return
        yield from _differences(name, module, _wanted(twin))
        for key, weight in module._parameters.items():
            full = f"{name}.{key}" if name else key
            if (
                weight is not None
                and (other := first.setdefault(id(weight), full)) != full
                and (full, other) not in tied
            ):
                yield f"{full} is {other}"
        if hooks and (module._forward_hooks or module._forward_pre_hooks):
            yield f"{name or 'the network'} has a forward hook"
    yield from (f"{name} is missing" for name in expected)
    if tied and model.head.weight is not model.embedding.weight:
        yield "head.weight is not embedding.weight, which tie_embeddings makes it"


class _Wanted(NamedTuple):
    """What a fresh module has: shapes of its parameters and buffers, attributes that act on what it computes."""

    tensors: dict[str, dict[str, tuple[type, torch.Size]]]
    attributes: dict[str, Any]


@lru_cache(maxsize=2048)
def _wanted(twin: nn.Module) -> _Wanted:
    tensors = {
        kind: {key: (type(each), each.shape) for key, each in vars(twin)[kind].items() if each is not None}
        for kind in ("_parameters", "_buffers")
    }
    free = {key for key in vars(twin) if key in FREE or (key[0] == "_" and key != "_exact")}
    return _Wanted(tensors, {key: value for key, value in vars(twin).items() if key not in free})


def _differences(name: str, module: nn.Module, wanted: _Wanted) -> Iterator[str]:
    """How one module differs from what a fresh network has in its place."""
    own, prefix = vars(module), f"{name}." if name else ""
    for kind, shapes in wanted.tensors.items():
        tensors = {key: tensor for key, tensor in own[kind].items() if tensor is not None}
        for key, tensor in tensors.items():
            if key not in shapes:
                yield f"{prefix}{key} is none of its {kind[1:]}"
            elif (type(tensor), tensor.shape) != shapes[key]:
                yield f"{prefix}{key} is a {type(tensor).__name__} {tuple(tensor.shape)}, not {tuple(shapes[key][1])}"
        yield from (f"{prefix}{key} is missing" for key in shapes if key not in tensors)
    yield from (f"{prefix}{key} is not the method of its class" for key in own.keys() & _METHODS[type(module)].keys())
    for key, value in wanted.attributes.items():
        if key not in own or not _same(own[key], value):
            yield f"{prefix}{key} is {_shown(own.get(key))}, not {_shown(value)}"
    if own.get("_compiled_call_impl") is not None:
        yield f"{name or 'the network'} was compiled"


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return value is wanted or (isinstance(value, Tensor) and torch.equal(value, wanted))
    if wanted in (attend_plain, attend_fused):  # which compute the same
        return value in (attend_plain, attend_fused)
    return value is wanted or (type(value) is type(wanted) and value == wanted)


def _classes() -> Iterator[str]:
    """Methods that were put into the classes themselves."""
    for kind, methods in _METHODS.items():
        for key, method in methods.items():
            if getattr(kind, key) is not method:
                yield f"{kind.__name__}.{key} is another than it was when tinylm was imported"


def _methods(kind: type) -> dict[str, Any]:
    """The methods and properties of a class, inherited ones too."""
    own = {key: getattr(kind, key) for key in dir(kind) if not key.startswith("__")}
    return {key: value for key, value in own.items() if isinstance(value, FunctionType | property)}


_METHODS: dict[type, dict[str, Any]] = {kind: _methods(kind) for kind in TYPES}


def _a(module: nn.Module) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _kind(weight: Tensor) -> str:
    return f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"


def _shown(value: Any) -> str:
    """A value in a message: of a function its name, of other objects their type."""
    if isinstance(value, int | float | str | None):
        return repr(value)
    return getattr(value, "__name__", None) or f"a {type(value).__name__}"
