"""LoRA (Hu et al. 2021): adds adapters to a trained model, merges and removes them. peft.py saves and loads them.

Left out: trainable biases, adapters of embeddings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from tinylm.adapt.freeze import freeze_parameters, matching
from tinylm.checks import check_types, require
from tinylm.errors import ConfigError
from tinylm.model import TransformerLM
from tinylm.model.lora import A, B, LoRALinear
from tinylm.model.quantized import quantized_layers

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GROUPS = {"attention": "blocks.*.attention.*", "feedforward": "blocks.*.feedforward.*", "head": "head"}


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The adapters of a finetuning run."""

    rank: int = 8
    """Rank of the update B A."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability of an adapter's input."""
    targets: tuple[str, ...] = ("attention", "feedforward")
    """Layers to adapt: attention, feedforward, head, or names with *."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.rank >= 1, f"lora.rank must be at least 1, got {self.rank}")
        require(self.alpha > 0, f"lora.alpha must be positive, got {self.alpha}")
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        require(len(self.targets) > 0, "lora.targets must name at least one layer")


# --- adapters in a model


def add_lora(model: TransformerLM, config: LoRAConfig, name: str = "default") -> list[str]:
    """Adds an adapter to linear layers and freezes everything but adapters.

    Args:
        model: the model; its layers are replaced in place
        config: size and targets of the adapter
        name: the adapter's name, since a model can have several

    Returns:
        the names of the adapted layers

    Raises:
        ConfigError: for an unknown target, a name in use, a tied head, or a layer that is not a plain `nn.Linear`.
    """
    check_unquantized(model)
    layers = _targets(model, config)
    add_adapters(model, dict.fromkeys(layers, (config.rank, config.alpha)), config.dropout, name)
    return layers


def add_adapters(model: TransformerLM, sizes: Mapping[str, tuple[int, float]], dropout: float, name: str) -> None:
    """Adds an adapter whose size differs between layers, and freezes everything but adapters.

    Args:
        model: the model; its layers are replaced in place
        sizes: path of a linear layer -> rank and alpha
        dropout: dropout probability of the adapter's input
        name: the adapter's name

    Raises:
        ConfigError: as `add_lora` does; the model is then unchanged.
    """
    _check_adaptable(model, sizes, name)
    freeze_parameters(model, [each for each, _ in model.named_parameters() if A not in each and B not in each])
    for path, (rank, alpha) in sizes.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, LoRALinear):
            assert isinstance(layer, nn.Linear)
            layer = LoRALinear(layer)
            model.set_submodule(path, layer)
        layer.add(name, rank, alpha, dropout)


def check_unquantized(model: nn.Module) -> None:
    """Raises ConfigError for a model with quantized layers, whose weights an adapter cannot be merged into."""
    for name, _ in quantized_layers(model):
        raise ConfigError(
            f"{name} is quantized, and quantized layers take no adapters; add them to the original model, merge them, "
            "then quantize it"
        )


def _targets(model: TransformerLM, config: LoRAConfig) -> list[str]:
    """The names of the layers to adapt."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for target in config.targets:
        problem = f"lora.targets: no linear layer is named {target}"
        found += matching(GROUPS.get(target, target), linear, problem, GROUPS)
    return [name for name in linear if name in found]


def _check_adaptable(model: TransformerLM, paths: Iterable[str], name: str) -> None:
    """Raises ConfigError, naming the layer, unless linear layers can get a new adapter `name`.

    A subclass or hooks would be lost in a `LoRALinear`; merging an adapter of a tied head would change the embedding.
    """
    if any(name in each.lora_a for each in lora_layers(model).values()):
        raise ConfigError(f"adapter {name}: the model already has an adapter of this name; choose another")
    for path in paths:
        if path == "head" and model.config.tie_embeddings:
            raise ConfigError(
                "lora.targets: the head is tied to the embedding (tie_embeddings), so it cannot be adapted"
            )
        layer, kind = model.get_submodule(path), type(model.get_submodule(path))
        plain = kind in (nn.Linear, LoRALinear)
        require(plain, f"lora.targets: {path} must be a plain nn.Linear, got {kind.__name__}")
        hooked = any(vars(layer)[name] for name in HOOKS)
        require(not hooked, f"lora.targets: {path} has hooks, which an adapted layer would lose; remove them")


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def use_adapters(model: nn.Module, *names: str) -> None:
    """Activates these adapters and deactivates all others, which is refused while adapters are merged."""
    layers = lora_layers(model).values()
    known = {name for layer in layers for name in layer.lora_a}
    for name in names:
        require(name in known, f"adapter {name}: the model has no such adapter; known are {', '.join(sorted(known))}")
    for layer in layers:
        require(not layer.merged, "adapters are merged into the weights; unmerge them first")
        layer.active = tuple(name for name in names if name in layer.lora_a)


def merge_lora(model: nn.Module) -> None:
    """Adds the active adapters to the weights, so that they cost no time."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Restores the weights from before `merge_lora`."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """Replaces adapted layers by plain ones and makes all weights trainable. Merged adapters stay in the weights."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.plain())
    model.requires_grad_(True)
