"""The files of a PEFT adapter: checks the fields of its config, and reads each layer's rank and scale from them.

A field of the config that is unknown, or whose effect tinylm does not implement, is refused unless it is empty.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from tinylm.bundle import read_safetensors
from tinylm.checks import require
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import read_json, sha256_file

CONFIG, WEIGHTS, CHECKSUMS = "adapter_config.json", "adapter_model.safetensors", "adapter_checksums.json"
PICKLE = "adapter_model.bin"

READ = {  # fields that `load_adapter` applies or checks
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
WITHOUT_EFFECT = {  # on a loaded adapter: its origin, and settings of options that other fields switch on
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "fan_in_fan_out",
    "qalora_group_size", "megatron_core", "runtime_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "unsloth_version",
}  # fmt: skip
EMPTY = (None, False, [], {}, "")
INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # the others change the base model's weights
CONVERT = "convert the adapter with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)"


# --- files


def checksums(folder: Path) -> dict[str, dict[str, str]]:
    """The content of `adapterchecksums.json`."""
    return {"sha256": {file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)}}


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config, checked, and the weights."""
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise DataError(
            f"{folder / PICKLE}: is a pickle, which can execute code and is not read; save the adapter again with "
            "PEFT's save_pretrained, which writes safetensors"
        )
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingInputError(f"{folder / file}: no such file; an adapter consists of {CONFIG} and {WEIGHTS}")
    # adapters of PEFT have no checksums
    if (folder / CHECKSUMS).exists() and read_json(folder / CHECKSUMS) != checksums(folder):
        raise DataError(
            f"{folder}: is damaged (a SHA-256 differs from {CHECKSUMS}); save it again, or remove {CHECKSUMS} if "
            "another program has changed the adapter"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= config.keys():
        raise DataError(f"{folder / CONFIG}: is not the config of a LoRA adapter")
    try:
        _check_fields(config)
    except ConfigError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error
    return config, read_safetensors(folder / WEIGHTS)


def _check_fields(config: dict[str, Any]) -> None:
    """Raises ConfigError, naming the field, for anything that would change the results and is not implemented."""
    for field, value in config.items():
        known = field in READ or field in WITHOUT_EFFECT or value in EMPTY
        require(known, f"{field} is {_shown(value)}, which tinylm does not support")
    start = config.get("init_lora_weights", True)
    changes = f"init_lora_weights is {_shown(start)}, which changes the base model's weights; {CONVERT}"
    require(start is None or start in INITIALIZATIONS, changes)
    bias, task = config.get("bias") or "none", config.get("task_type") or "CAUSAL_LM"
    require(bias == "none", f"bias is {_shown(bias)}, which tinylm does not support; it must be none")
    require(task == "CAUSAL_LM", f"task_type is {_shown(task)}; tinylm supports only CAUSAL_LM")
    for field in ("rank_pattern", "alpha_pattern"):
        require(isinstance(config.get(field) or {}, dict), f"{field} must map names of layers to numbers")
        _check_patterns(field, config.get(field) or {})
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        names = config.get(field) or []
        words = isinstance(names, str) or (isinstance(names, list) and all(isinstance(name, str) for name in names))
        require(words, f"{field} must be a name or a list of names, got {_shown(names)}")
        _check_patterns(field, [names] if isinstance(names, str) else [])
    layers = config.get("layers_to_transform")
    numbers = [layers] if isinstance(layers, int) else layers or []
    fits = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    require(fits, f"layers_to_transform must be a list of numbers, got {_shown(layers)}")
    dropout = config.get("lora_dropout") or 0.0
    require(isinstance(dropout, int | float) and 0 <= dropout < 1, f"lora_dropout must be in [0, 1), got {dropout!r}")


def _check_patterns(field: str, patterns: Iterable[str]) -> None:
    """Raises ConfigError for an invalid regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{field}: {pattern!r} is not a regular expression ({error})") from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else text[:100] + "..."


# --- the layers that the config targets


def rank_and_scale(folder: Path, config: dict[str, Any], theirs: str, head: bool) -> tuple[int, float]:
    """Rank and scale of a layer's adapter, which the config must target."""
    if not _targeted(config, theirs, head):
        raise DataError(
            f"{folder / CONFIG}: target_modules, exclude_modules and layers_to_transform leave out {theirs}, "
            f"for which {WEIGHTS} has weights; PEFT would ignore them: list it, or remove them"
        )
    values = []
    for pattern, default in (("rank_pattern", config["r"]), ("alpha_pattern", config["lora_alpha"])):
        keys = config.get(pattern) or {}
        key = next((key for key in keys if re.match(rf"(.*\.)?({key})$", theirs)), None)
        values.append(default if key is None else keys[key])
    rank, alpha = values
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise DataError(f"{folder / CONFIG}: rank {rank} and alpha {alpha} of {theirs} must be positive numbers")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _targeted(config: dict[str, Any], theirs: str, head: bool) -> bool:
    """Whether PEFT adapts a layer, by its rules for names."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _named(excluded, theirs):
        return False
    if isinstance(targets, str):  # `all-linear` leaves the head out
        return not head if targets.lower() == "all-linear" else _named(targets, theirs)
    if not targets or not _named(targets, theirs):
        return False
    layers, containers = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    if layers in (None, []) or theirs in targets:
        return True
    containers = [containers] if isinstance(containers, str) else containers
    matches = (re.match(rf"(?:^|.*?\.){container}\.(\d+)\.", theirs) for container in containers)
    number = next((int(match[1]) for match in matches if match), None)
    return number in ([layers] if isinstance(layers, int) else layers)


def _named(names: Any, theirs: str) -> bool:
    """Whether a list contains a layer's name or its last part, or a regular expression matches the name."""
    if isinstance(names, str):
        return re.fullmatch(names, theirs) is not None
    return any(theirs == name or theirs.endswith(f".{name}") for name in names)
