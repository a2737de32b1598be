"""LoRA (Hu et al. 2021): adds adapters to a trained model, merges and removes them, and saves and loads them.

The files are PEFT's: `adapter_config.json` and `adapter_model.safetensors`; a third, `adapter_checksums.json`, holds
their SHA-256, which PEFT ignores and `load_adapter` verifies. An adapter of a Llama-shaped model is saved
under Llama's names, so that `peft` loads it onto the exported model; any other keeps our names.

Left out: trainable biases, ranks that differ between layers, adapters of embeddings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tinylm.adapt.freeze import freeze_parameters, matching
from tinylm.bundle import read_safetensors
from tinylm.checks import check_types, require
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import atomic_folder, read_json, sha256_file, write_json
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.lora import A, B, LoRALinear
from tinylm.targets import FolderKind, check_target

CONFIG, WEIGHTS, CHECKSUMS = "adapter_config.json", "adapter_model.safetensors", "adapter_checksums.json"
ADAPTER = FolderKind("an adapter", frozenset((CONFIG, WEIGHTS, CHECKSUMS)), CHECKSUMS)
PREFIX = "base_model.model."  # of the weights in PEFT's files
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
    layers = _targets(model, config)
    if any(name in each.lora_a for each in lora_layers(model).values()):
        raise ConfigError(f"adapter {name}: the model already has an adapter of this name; choose another")
    freeze_parameters(model, [each for each, _ in model.named_parameters() if A not in each and B not in each])
    for path in layers:
        layer = model.get_submodule(path)
        if not isinstance(layer, LoRALinear):
            assert isinstance(layer, nn.Linear)
            layer = LoRALinear(layer)
            model.set_submodule(path, layer)
        layer.add(name, config.rank, config.alpha, config.dropout)
    return layers


def _targets(model: TransformerLM, config: LoRAConfig) -> list[str]:
    """The names of the layers to adapt. A subclass or hooks would be lost in a `LoRALinear`, so they are refused."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for target in config.targets:
        problem = f"lora.targets: no linear layer is named {target}"
        found += matching(GROUPS.get(target, target), linear, problem, GROUPS)
    if "head" in found and model.config.tie_embeddings:
        raise ConfigError("lora.targets: the head is tied to the embedding (tie_embeddings), so it cannot be adapted")
    for path in found:
        layer, kind = model.get_submodule(path), type(model.get_submodule(path))
        plain = kind in (nn.Linear, LoRALinear)
        require(plain, f"lora.targets: {path} must be a plain nn.Linear, got {kind.__name__}")
        hooked = any(vars(layer)[name] for name in HOOKS)
        require(not hooked, f"lora.targets: {path} has hooks, which an adapted layer would lose; remove them")
    return [name for name in linear if name in found]


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


# --- files


def save_adapter(
    folder: str | Path, model: TransformerLM, name: str = "default", base: str = "", overwrite: bool = False
) -> None:
    """Saves one adapter without its base model, atomically, in PEFT's format.

    Args:
        folder: the folder to write
        model: the model with the adapter
        name: the adapter's name
        base: path of the base model, recorded for whoever loads the adapter
        overwrite: replace an adapter that tinylm has saved there

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced, or is something else.
        ConfigError: if the model has no such adapter.
    """
    check_target(folder, ADAPTER, overwrite)
    layers = {
        _peft_name(path, model.config): layer for path, layer in lora_layers(model).items() if name in layer.lora_a
    }
    require(len(layers) > 0, f"adapter {name}: the model has no such adapter")
    first = next(iter(layers.values()))
    rank = len(first.lora_a[name])
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": first.scales[name] * rank, "lora_dropout": first.dropouts[name], "bias": "none",
        "fan_in_fan_out": False, "target_modules": [*layers],
    }  # fmt: skip
    weights = {
        f"{PREFIX}{path}.lora_{kind}.weight": matrices[name].detach().cpu().contiguous()
        for path, layer in layers.items()
        for kind, matrices in (("A", layer.lora_a), ("B", layer.lora_b))
    }
    with atomic_folder(folder) as new:
        write_json(new / CONFIG, config)
        save_file(weights, new / WEIGHTS)
        write_json(new / CHECKSUMS, _checksums(new))


def _checksums(folder: Path) -> dict[str, dict[str, str]]:
    """The content of `adapter_checksums.json`."""
    return {"sha256": {file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)}}


def load_adapter(folder: str | Path, model: TransformerLM, name: str = "default") -> None:
    """Adds a saved adapter to a model, under the name `name`.

    Raises:
        MissingInputError: if a file is missing.
        DataError: if a file is damaged, does not fit the model, or uses an unsupported feature.
        ConfigError: if the name is in use.
    """
    config, weights = _read_adapter(Path(folder))
    ours = {_peft_name(path, model.config): path for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    paths = []
    for key in sorted(weights):
        path, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if path not in ours or kind not in ("A.weight", "B.weight"):
            raise DataError(f"{folder}: has {key}, which the model lacks; the adapter belongs to another model")
        paths.append(ours[path])
    lora = LoRAConfig(
        rank=config["r"], alpha=float(config["lora_alpha"]), dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(paths),
    )  # fmt: skip
    for path in add_lora(model, lora, name):
        layer = model.get_submodule(path)
        assert isinstance(layer, LoRALinear)
        for kind, part in (("A", layer.lora_a[name]), ("B", layer.lora_b[name])):
            key = f"{PREFIX}{_peft_name(path, model.config)}.lora_{kind}.weight"
            if key not in weights or weights[key].shape != part.shape:
                raise DataError(
                    f"{folder}: {key} is missing or not {tuple(part.shape)}; the adapter belongs to another model"
                )
            part.data.copy_(weights[key])


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingInputError(f"{folder / file}: no such file; an adapter consists of {CONFIG} and {WEIGHTS}")
    # adapters of PEFT have no checksums
    if (folder / CHECKSUMS).exists() and read_json(folder / CHECKSUMS) != _checksums(folder):
        raise DataError(
            f"{folder}: is damaged (a SHA-256 differs from {CHECKSUMS}); save it again, or remove {CHECKSUMS} if "
            "another program has changed the adapter"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= config.keys():
        raise DataError(f"{folder / CONFIG}: is not the config of a LoRA adapter")
    for field in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if config.get(field):
            raise DataError(f"{folder / CONFIG}: {field} is {config[field]}, which tinylm does not support")
    if config.get("bias", "none") != "none":
        raise DataError(f"{folder / CONFIG}: bias must be none, got {config['bias']}")
    return config, read_safetensors(folder / WEIGHTS)


LLAMA = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj", "feedforward.gate": "mlp.gate_proj", "feedforward.input": "mlp.up_proj",
    "feedforward.output": "mlp.down_proj",
}  # fmt: skip


def _peft_name(path: str, config: ModelConfig) -> str:
    """A linear layer's name in an adapter's files: Llama's if the model has Llama's shape, else ours.

    `blocks.0.attention.query` is `model.layers.0.self_attn.q_proj`.
    """
    shape = (config.positional_encoding, config.norm, config.norm_placement, config.activation)
    if shape != ("rotary", "rmsnorm", "pre", "swiglu"):
        return path
    if path == "head":
        return "lm_head"
    _, number, part = path.split(".", 2)
    return f"model.layers.{number}.{LLAMA[part]}"
