"""A model folder, and `load`, the one way in for everything that uses a model.

A model folder has three files: `tinylm.json` (the config, the checksums, information on the run), `model.safetensors`
(the weights) and `tokenizer.tinylm.json`. Reading them executes no code. A checkpoint contains the same in addition to
the training state, so `load` reads it too.

If linear layers are quantized, the manifest lists them under `layers`, and `load` creates them. A reader that does not
know `layers` meets unknown weights and refuses the folder. If the network has plug-ins, the manifest names their
classes and the hash of their source, and `load` imports them only if the user trusts them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinylm import plugins
from tinylm.errors import ConfigError, DataError, MissingInputError, NumericError, notice
from tinylm.files import atomic_folder, check_seal, read_json, sha256_file, sha256_json, write_json
from tinylm.known import check_known
from tinylm.locate import CONVERTIBLE, MANIFEST, TOKENIZER, WEIGHTS, conversion, find_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights
from tinylm.model.lora import merged_weights
from tinylm.model.quantized import check_layers, describe_layers, put_layers
from tinylm.model.size import check_size
from tinylm.plugins import admit, describe
from tinylm.shards import Fill, Shards, fill_shards
from tinylm.targets import MODEL_FOLDER, check_target
from tinylm.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
LARGEST_MANIFEST = 8 << 20  # bytes
PREFIX = "net."  # of the model's weights in a checkpoint


@dataclass(frozen=True)
class Bundle:
    """A model in evaluation mode, its tokenizer, and information on its run."""

    model: TransformerLM
    tokenizer: Tokenizer
    info: dict[str, Any]


# --- model folders


def save_bundle(
    folder: str | Path,
    model: TransformerLM,
    tokenizer: Tokenizer,
    info: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model folder atomically.

    Args:
        folder: the folder to write
        model: a standard model, possibly quantized
        tokenizer: the model's tokenizer
        info: plain values to record, such as the step and the validation loss
        overwrite: replace an earlier model folder

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced, or is something else.
        ConfigError: if the tokenizer has more tokens than the model, or the model is not standard.
    """
    check_target(folder, MODEL_FOLDER, overwrite)
    check_known(model, "a model folder", plugins=True)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {model.config.vocab_size}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]  # equals embedding.weight
    with atomic_folder(folder) as new:
        save_file(weights, new / WEIGHTS)
        tokenizer.save(new / TOKENIZER)
        manifest = {"format": FORMAT, "model": model.config.to_dict(), "info": info or {}}
        if layers := describe_layers(model):
            manifest["layers"] = layers
        if parts := model.config.parts:
            manifest["plugins"] = describe(parts.values())
        write_json(new / MANIFEST, {**manifest, "sha256": _checksums(new, manifest)})


def _checksums(folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    return {MANIFEST: sha256_json(manifest)} | {name: sha256_file(folder / name) for name in (WEIGHTS, TOKENIZER)}


def load(
    path: str | Path, device: str | torch.device = "cpu", trust: Iterable[str] = ()
) -> tuple[TransformerLM, Tokenizer]:
    """Loads the model, in evaluation mode, and the tokenizer of a run folder, a model folder or a checkpoint.

    From a run folder it loads `model/` (the best by validation loss), else `checkpoints/best.ckpt`, else
    `checkpoints/last.ckpt`, and reports which on stderr. The path `storyteller` loads the model that comes with tinylm.

    Args:
        path: the model
        device: where its weights are put
        trust: modules whose code may be imported, as ["my_layers"], for a model with plug-ins

    Raises:
        ConfigError: if the model has plug-ins from other modules.
        MissingInputError: if there is no model.
        DataError: if a file is damaged or not tinylm's.
        NumericError: if a weight is NaN or infinite.
    """
    bundle = load_bundle(path, device, trust)
    return bundle.model, bundle.tokenizer


def load_bundle(path: str | Path, device: str | torch.device = "cpu", trust: Iterable[str] = ()) -> Bundle:
    """`load`, with the information recorded on the model's run."""
    plugins.trust(trust)
    found = find_model(path)
    if found != Path(path):
        notice(f"loading {found}")
    bundle = _read_folder(found) if found.is_dir() else _read_checkpoint_model(found)
    bundle.model.to(device).eval()
    return bundle


def _read_folder(folder: Path) -> Bundle:
    if (size := (folder / MANIFEST).stat().st_size) > LARGEST_MANIFEST:
        raise DataError(f"{folder / MANIFEST}: has {size:,} bytes, more than any model needs")
    manifest = read_json(folder / MANIFEST)
    _check_entry(manifest, {"model", "info", "sha256"}, source=str(folder / MANIFEST))
    recorded = manifest.pop("sha256")
    if not isinstance(recorded, dict) or recorded.keys() != {MANIFEST, WEIGHTS, TOKENIZER}:
        raise DataError(f"{folder / MANIFEST}: is damaged (it must have a checksum of each file of a model folder)")
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: is missing from the model folder")
    for name, checksum in _checksums(folder, manifest).items():
        if checksum != recorded[name]:
            raise DataError(f"{folder / name}: is damaged (SHA-256 differs from the recorded one); export it again")
    _admit_plugins(manifest, str(folder))
    weights = read_safetensors(folder / WEIGHTS)
    model = rebuild_model(manifest["model"], weights, source=str(folder), layers=manifest.get("layers", []))
    return Bundle(model, load_tokenizer(folder / TOKENIZER), manifest["info"])


def _admit_plugins(entry: dict[str, Any], source: str) -> None:
    """Imports the plug-ins of a stored model if the user trusts them."""
    try:
        parts = ModelConfig.from_dict(entry["model"]).parts.values()
    except (ConfigError, TypeError):  # reported by `rebuild_model`
        return
    admit(parts, entry.get("plugins"), source)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if its header is damaged, or it is not a safetensors file.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: is missing from the model folder")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: is damaged, or not a safetensors file ({' '.join(str(error).split())})") from error


def _check_entry(entry: Any, keys: set[str], source: str) -> None:
    """Checks the format and the keys of a manifest or of a checkpoint's entry."""
    if not isinstance(entry, dict) or "format" not in entry:
        raise DataError(f"{source}: is not a tinylm model folder or checkpoint")
    if entry["format"] != FORMAT:
        raise DataError(f"{source}: has format {entry['format']}, this tinylm reads format {FORMAT}")
    if not keys <= entry.keys() or not isinstance(entry["model"], dict):
        raise DataError(f"{source}: is damaged (it must have {', '.join(sorted(keys))})")


def rebuild_model(
    config: dict[str, Any], weights: dict[str, torch.Tensor], source: str, layers: Any = ()
) -> TransformerLM:
    """The model of a stored config, with stored weights in their dtypes and quantized `layers` (`describe_layers`).

    Raises:
        DataError: if config, layers and weights do not match; names `source`.
        NumericError: if a weight is NaN or infinite.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NumericError(f"{source}: {name} has weights that are not finite; use another checkpoint")
    try:
        described = ModelConfig.from_dict(config)
        check_size(described, sum(each.numel() for each in weights.values()), len(weights))
        with without_weights():
            model = TransformerLM(described)
            put_layers(model, layers)
        if model.config.tie_embeddings:
            weights = {**weights, "head.weight": weights["embedding.weight"]}
        model.load_state_dict(weights, assign=True)
        check_layers(model)
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{source}: its weights and its config do not match ({reason})") from error
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


# --- checkpoints, written by training/checkpoint.py


def checkpoint_entry(
    config: ModelConfig, tokenizer: Tokenizer, adapters: dict[str, float] | None = None, changed: str | None = None
) -> dict[str, Any]:
    """The entry `tinylm` of a checkpoint, with which `load` needs no YAML.

    Args:
        config: the model's config
        tokenizer: the model's tokenizer
        adapters: alpha / rank of each LoRA adapter among the weights; `load` merges them
        changed: description of a nonstandard part, because of which `load` refuses the checkpoint
    """
    entry = {"format": FORMAT, "model": config.to_dict(), "tokenizer": tokenizer.to_dict()}
    optional = {"adapters": adapters or None, "changed": changed, "plugins": describe(config.parts.values()) or None}
    return entry | {name: value for name, value in optional.items() if value is not None}


def read_checkpoint(path: str | Path, fill: Fill = Shards.rows) -> dict[str, Any]:
    """The whole content of a checkpoint, after a check of its SHA-256. Reading it executes no code.

    Args:
        path: the file
        fill: for a sharded checkpoint, (shards, name, shape) -> the value of a tensor. Default: the whole tensor

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, or not a tinylm checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such checkpoint")
    check_seal(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of exceptions for damaged files
        raise DataError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "tinylm" not in checkpoint:
        keys = checkpoint.keys() if isinstance(checkpoint, dict) else ()
        if {"model", "model_args"} <= {*keys}:
            raise DataError(f"{path}: is a checkpoint of nanoGPT; convert it first: {conversion(path)}")
        raise DataError(f"{path}: is not a checkpoint of tinylm, but of another program; {CONVERTIBLE}")
    _check_entry(checkpoint["tinylm"], {"model", "tokenizer"}, source=str(path))
    if not isinstance(checkpoint.get("state_dict"), dict) or "global_step" not in checkpoint:
        raise DataError(f"{path}: is incomplete: a checkpoint must have state_dict and global_step")
    return fill_shards(checkpoint, path, fill)


def network_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's weights in a checkpoint, including those of adapters."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _read_checkpoint_model(path: Path) -> Bundle:
    checkpoint = read_checkpoint(path)
    entry = checkpoint["tinylm"]
    if entry.get("changed"):
        raise DataError(
            f"{path}: its model is not standard ({entry['changed']}); create that model in Python and load "
            "tinylm.bundle.network_weights(read_checkpoint(path)) into it"
        )
    _admit_plugins(entry, str(path))
    weights = merged_weights(network_weights(checkpoint), entry.get("adapters", {}))
    model = rebuild_model(entry["model"], weights, source=str(path))
    return Bundle(model, Tokenizer.from_dict(entry["tokenizer"], source=str(path)), {"step": checkpoint["global_step"]})
