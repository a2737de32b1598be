"""A finished model as a folder, and `load`, the one way in for whoever uses a model.

A model folder has three files: `tinylm.json` (the architecture, the checksums of the other two, what is known of the
run), `model.safetensors` (the weights) and `tokenizer.tinylm.json`. Neither can execute anything when it is read.
A checkpoint carries the same things beside the state of the training, so `load` takes it as well.

Where linear layers are not plain ones (int8, int4), the manifest says under `layers` which are of what kind, and `load`
puts such layers in their places. Older readers find weights that they do not know, and refuse the folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import atomic_folder, check_seal, read_json, sha256_file, sha256_json, write_json
from tinylm.locate import MANIFEST, TOKENIZER, WEIGHTS, find_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights
from tinylm.model.known import check_known
from tinylm.model.lora import merged_weights
from tinylm.model.quantized import check_layers, describe_layers, put_layers
from tinylm.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
PREFIX = "net."  # of the network's weights inside a checkpoint


@dataclass(frozen=True)
class Bundle:
    """A model read from disk: the network in evaluation mode, its tokenizer, what is known of its run."""

    model: TransformerLM
    tokenizer: Tokenizer
    info: dict[str, Any]


def save_bundle(
    folder: str | Path, model: TransformerLM, tokenizer: Tokenizer, info: dict[str, Any] | None = None
) -> None:
    """Writes a model folder, atomically; an earlier one is replaced.

    Args:
        folder: where to
        model: the network
        tokenizer: of the same vocabulary
        info: what else to record (step, validation loss ...), plain values

    Raises:
        ConfigError: if tokenizer and model have different vocabularies, or the network has adapters, hooks or a part
            that its config does not describe: `load` would give another network.
    """
    check_known(model, "a model folder")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {model.config.vocab_size}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]  # the same numbers as embedding.weight
    with atomic_folder(folder) as new:
        save_file(weights, new / WEIGHTS)
        tokenizer.save(new / TOKENIZER)
        manifest = {"format": FORMAT, "model": model.config.to_dict(), "info": info or {}}
        if layers := describe_layers(model):
            manifest["layers"] = layers
        checksums = {MANIFEST: sha256_json(manifest)} | {name: sha256_file(new / name) for name in (WEIGHTS, TOKENIZER)}
        write_json(new / MANIFEST, {**manifest, "sha256": checksums})


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[TransformerLM, Tokenizer]:
    """The model and tokenizer of a run folder, a model folder or a checkpoint.

    Of a run folder it takes `model/` (the best by validation loss), else `checkpoints/best.ckpt`, else
    `checkpoints/last.ckpt`, and says which on stderr.

    Args:
        path: where the model is
        device: where the weights go

    Returns:
        the network, in evaluation mode, and its tokenizer

    Raises:
        MissingInputError: if there is no model.
        DataError: if its files are damaged or something else.
    """
    bundle = load_bundle(path, device)
    return bundle.model, bundle.tokenizer


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """As `load`, with what is recorded of the model's run."""
    found = find_model(path)
    if found != Path(path):
        notice(f"loading {found}")
    bundle = _read_folder(found) if found.is_dir() else _read_checkpoint_model(found)
    bundle.model.to(device).eval()
    return bundle


def _read_folder(folder: Path) -> Bundle:
    manifest = read_json(folder / MANIFEST)
    check_entry(manifest, {"model", "info", "sha256"}, source=str(folder / MANIFEST))
    recorded = manifest.pop("sha256")
    if not isinstance(recorded, dict) or recorded.keys() != {MANIFEST, WEIGHTS, TOKENIZER}:
        raise DataError(f"{folder / MANIFEST}: is damaged (its checksums are not those of a model folder)")
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: is missing from the model folder")
    found = {name: sha256_file(folder / name) for name in (WEIGHTS, TOKENIZER)} | {MANIFEST: sha256_json(manifest)}
    for name in found:
        if found[name] != recorded[name]:
            raise DataError(f"{folder / name}: is damaged (SHA-256 differs from the recorded one); export it again")
    weights = read_safetensors(folder / WEIGHTS)
    model = rebuild_model(manifest["model"], weights, source=str(folder), layers=manifest.get("layers", []))
    return Bundle(model, load_tokenizer(folder / TOKENIZER), manifest["info"])


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged where its header is, or something else.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: is missing from the model folder")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: is damaged, or no safetensors file ({' '.join(str(error).split())})") from error


def check_entry(entry: Any, keys: set[str], source: str) -> None:
    """Checks that what was read from a model folder or a checkpoint has a format of ours and these keys.

    Raises:
        DataError: if not; `source` is named.
    """
    if not isinstance(entry, dict) or "format" not in entry:
        raise DataError(f"{source}: is not a tinylm model folder or checkpoint")
    if entry["format"] != FORMAT:
        raise DataError(f"{source}: has format {entry['format']}, this tinylm reads format {FORMAT}")
    if not keys <= entry.keys() or not isinstance(entry["model"], dict):
        raise DataError(f"{source}: is damaged: it should have {', '.join(sorted(keys))}")


def rebuild_model(
    config: dict[str, Any], weights: dict[str, torch.Tensor], source: str, layers: Any = ()
) -> TransformerLM:
    """The network of a stored config with stored weights, in the weights' own types.

    Args:
        config: fields of `ModelConfig`
        weights: by name
        source: the file, for errors
        layers: which linear layers are of another kind, as `describe_layers` says it

    Raises:
        DataError: if config, layers and weights do not fit each other; `source` is named.
    """
    try:
        with without_weights():
            model = TransformerLM(ModelConfig.from_dict(config))
            put_layers(model, layers)
        if model.config.tie_embeddings:
            weights = {**weights, "head.weight": weights["embedding.weight"]}
        model.load_state_dict(weights, assign=True)
        check_layers(model)
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{source}: its weights and its config do not fit ({reason})") from error
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


# --- checkpoints, which training/checkpoint.py writes


def checkpoint_entry(
    config: ModelConfig,
    tokenizer: Tokenizer,
    adapters: dict[str, float] | None = None,
    changed: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint carries under the key `tinylm`, so that `load` needs no YAML.

    Args:
        config: of the network
        tokenizer: of the same vocabulary
        adapters: alpha / rank of each LoRA adapter among the weights, which `load` merges
        changed: a part of the network that the config does not describe, in words: `load` will refuse it
    """
    entry = {"format": FORMAT, "model": config.to_dict(), "tokenizer": tokenizer.to_dict()}
    more = {"adapters": adapters or None, "changed": changed}
    return entry | {name: value for name, value in more.items() if value is not None}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The whole contents of a checkpoint, after its SHA-256 was checked; nothing in it is executed.

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
    except Exception as error:  # torch raises many kinds; whatever it is, this file is of no use
        raise DataError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "tinylm" not in checkpoint:
        raise DataError(f"{path}: is a checkpoint of something else, not of tinylm")
    check_entry(checkpoint["tinylm"], {"model", "tokenizer"}, source=str(path))
    if not isinstance(checkpoint.get("state_dict"), dict) or "global_step" not in checkpoint:
        raise DataError(f"{path}: is incomplete: a checkpoint has weights and a step")
    return checkpoint


def network_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights in a checkpoint, adapters apart."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _read_checkpoint_model(path: Path) -> Bundle:
    checkpoint = read_checkpoint(path)
    entry = checkpoint["tinylm"]
    if entry.get("changed"):
        raise DataError(
            f"{path}: is of a network that its config does not describe ({entry['changed']}); "
            "make that network in Python and load tinylm.bundle.network_weights(read_checkpoint(path)) into it"
        )
    weights = merged_weights(network_weights(checkpoint), entry.get("adapters", {}))
    model = rebuild_model(entry["model"], weights, source=str(path))
    return Bundle(model, Tokenizer.from_dict(entry["tokenizer"], source=str(path)), {"step": checkpoint["global_step"]})
