"""LoRA (Hu et al. 2021): puts adapters into a finished model, takes them out, and keeps them as files of their own.

The files are PEFT's: `adapter_config.json` and `adapter_model.safetensors`. A model of Llama's shape gets Llama's names
in them, so `peft` lays the adapter over the exported model; any other keeps our names.

Left out: biases that learn, ranks that differ from layer to layer, adapters of embeddings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tinylm.adapt.freeze import matching, rest
from tinylm.bundle import read_safetensors
from tinylm.checks import check_types, require
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import atomic_folder, read_json, write_json
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.lora import A, B, LoRALinear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every weight in it
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
    """Linear layers with an adapter: attention, feedforward, head, or names, where * stands for anything."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.rank >= 1, f"lora.rank must be at least 1, got {self.rank}")
        require(self.alpha > 0, f"lora.alpha must be positive, got {self.alpha}")
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        require(len(self.targets) > 0, "lora.targets must name at least one layer")


# --- in and out


def add_lora(model: TransformerLM, config: LoRAConfig, name: str = "default") -> list[str]:
    """Lays an adapter over a model's linear layers; from now on the adapters alone learn.

    Args:
        model: the network; its layers are replaced in place
        config: size and place of the adapter
        name: of the adapter, among others over the same model

    Returns:
        the names of the layers

    Raises:
        ConfigError: for a target that the model does not have, a name that is taken, a head that is the embedding, a
            layer that is not a plain linear one.
    """
    layers = _targets(model, config)
    for path in layers:
        _check_plain(path, model.get_submodule(path))
    if any(name in each.lora_a for each in lora_layers(model).values()):
        raise ConfigError(f"adapter {name}: there is one of this name already; give another")
    rest(model, [each for each, _ in model.named_parameters() if A not in each and B not in each])
    for path in layers:
        layer = model.get_submodule(path)
        if not isinstance(layer, LoRALinear):
            assert isinstance(layer, nn.Linear)
            layer = LoRALinear(layer)
            model.set_submodule(path, layer)
        layer.add(name, config.rank, config.alpha, config.dropout)
    return layers


def _check_plain(path: str, layer: nn.Module) -> None:
    """Refuses a layer that would not be what it was inside a `LoRALinear`: a subclass, or one with hooks."""
    kind = type(layer).__name__
    require(type(layer) in (nn.Linear, LoRALinear), f"lora.targets: {path} is no plain nn.Linear but a {kind}")
    hooked = any(vars(layer)[name] for name in HOOKS)
    require(not hooked, f"lora.targets: {path} has hooks, which an adapter's layer would not have; remove them")


def _targets(model: TransformerLM, config: LoRAConfig) -> list[str]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for target in config.targets:
        found += matching(
            GROUPS.get(target, target), linear, f"lora.targets: no linear layer is named {target}", GROUPS
        )
    if "head" in found and model.config.tie_embeddings:
        raise ConfigError(
            "lora.targets: this head is the embedding (tie_embeddings), which an adapter would change too"
        )
    return [name for name in linear if name in found]


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def use_adapters(model: nn.Module, *names: str) -> None:
    """Makes these adapters the active ones; none: the base alone.

    Raises:
        ConfigError: for an unknown name, or while adapters are merged.
    """
    layers = lora_layers(model).values()
    known = {name for layer in layers for name in layer.lora_a}
    for name in names:
        require(name in known, f"adapter {name}: there is none of this name; known are {', '.join(sorted(known))}")
    for layer in layers:
        require(not layer.merged, "adapters are merged into the weights; unmerge them first")
        layer.active = tuple(name for name in names if name in layer.lora_a)


def merge_lora(model: nn.Module) -> None:
    """Adds the active adapters to the weights, so that they cost no time."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Takes the weights back as they were before `merge_lora`."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """Makes plain linear layers again, with the adapters if they are merged, without if not; all weights learn."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.plain())
    model.requires_grad_(True)


# --- files


def save_adapter(folder: str | Path, model: TransformerLM, name: str = "default", base: str = "") -> None:
    """Writes an adapter alone, atomically, in PEFT's layout.

    Args:
        folder: where to; an earlier one is replaced
        model: with the adapter
        name: which
        base: where the model under it is, for whoever loads it

    Raises:
        ConfigError: if the model has no such adapter.
    """
    layers = {path: layer for path, layer in lora_layers(model).items() if name in layer.lora_a}
    require(len(layers) > 0, f"adapter {name}: the model has none of this name")
    first = next(iter(layers.values()))
    rank = len(first.lora_a[name])
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": first.scales[name] * rank, "lora_dropout": first.dropouts[name], "bias": "none",
        "fan_in_fan_out": False, "target_modules": [their_name(path, model.config) for path in layers],
    }  # fmt: skip
    weights = {}
    for path, layer in layers.items():
        prefix = PREFIX + their_name(path, model.config)
        weights[f"{prefix}.lora_A.weight"] = layer.lora_a[name].detach().cpu().contiguous()
        weights[f"{prefix}.lora_B.weight"] = layer.lora_b[name].detach().cpu().contiguous()
    with atomic_folder(folder) as new:
        write_json(new / CONFIG, config)
        save_file(weights, new / WEIGHTS)


def load_adapter(folder: str | Path, model: TransformerLM, name: str = "default") -> None:
    """Lays an adapter of a file over a model; arguments as `save_adapter`'s.

    Raises:
        MissingInputError: if a file is missing.
        DataError: if it is damaged, does not fit the model, or has what we do not have.
        ConfigError: if the name is taken.
    """
    config, weights = _read_adapter(Path(folder))
    ours = {their_name(path, model.config): path for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    paths = []
    for key in sorted(weights):
        path, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if path not in ours or kind not in ("A.weight", "B.weight"):
            raise DataError(f"{folder}: has {key}, which the model has no place for; it is of another model")
        paths.append(ours[path])
    lora = LoRAConfig(
        rank=config["r"], alpha=float(config["lora_alpha"]), dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(paths),
    )  # fmt: skip
    for path in add_lora(model, lora, name):
        layer = model.get_submodule(path)
        assert isinstance(layer, LoRALinear)
        for part, kind in ((layer.lora_a, "A"), (layer.lora_b, "B")):
            key = f"{PREFIX}{their_name(path, model.config)}.lora_{kind}.weight"
            if key not in weights or weights[key].shape != part[name].shape:
                raise DataError(f"{folder}: {key} is missing or not {tuple(part[name].shape)}; it is of another model")
            part[name].data.copy_(weights[key])


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingInputError(f"{folder / file}: no such file; an adapter has {CONFIG} and {WEIGHTS}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= config.keys():
        raise DataError(f"{folder / CONFIG}: is not a LoRA adapter's")
    for field in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if config.get(field):
            raise DataError(f"{folder / CONFIG}: {field} is {config[field]}, which tinylm does not have")
    if config.get("bias", "none") != "none":
        raise DataError(f"{folder / CONFIG}: bias is {config['bias']}, tinylm has none only")
    return config, read_safetensors(folder / WEIGHTS)


LLAMA = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj", "feedforward.gate": "mlp.gate_proj", "feedforward.input": "mlp.up_proj",
    "feedforward.output": "mlp.down_proj",
}  # fmt: skip


def their_name(path: str, config: ModelConfig) -> str:
    """A linear layer's name in an adapter's files: Llama's where the model has its shape, else ours.

    `blocks.0.attention.query` is `model.layers.0.self_attn.q_proj`.
    """
    llama = (config.positional_encoding, config.norm, config.norm_placement, config.activation)
    if llama != ("rotary", "rmsnorm", "pre", "swiglu"):
        return path
    if path == "head":
        return "lm_head"
    _, number, part = path.split(".", 2)
    return f"model.layers.{number}.{LLAMA[part]}"
