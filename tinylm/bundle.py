"""A finished model as a folder, and `load`, the one way in for whoever uses a model.

A model folder has three files: `tinylm.json` (the architecture, the checksums of the other two, what is known of the
run), `model.safetensors` (the weights) and `tokenizer.tinylm.json`. Neither can execute anything when it is read.
A checkpoint carries the same things beside the state of the training, so `load` takes it as well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import atomic_folder, check_seal, read_json, sha256_file, write_json
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
MANIFEST, WEIGHTS, TOKENIZER = "tinylm.json", "model.safetensors", "tokenizer.tinylm.json"
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
        ConfigError: if tokenizer and model have different vocabularies.
    """
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {model.config.vocab_size}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["head.weight"]  # the same numbers as embedding.weight
    with atomic_folder(folder) as new:
        save_file(weights, new / WEIGHTS)
        tokenizer.save(new / TOKENIZER)
        checksums = {name: sha256_file(new / name) for name in (WEIGHTS, TOKENIZER)}
        manifest = {"format": FORMAT, "model": model.config.to_dict(), "info": info or {}, "sha256": checksums}
        write_json(new / MANIFEST, manifest)


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
    if "://" in str(path):
        raise ConfigError(f"{path}: models are loaded from files only; download it first")
    found = _resolve(Path(path))
    if found != Path(path):
        notice(f"loading {found}")
    bundle = _read_folder(found) if found.is_dir() else _read_checkpoint_model(found)
    bundle.model.to(device).eval()
    return bundle


def _resolve(path: Path) -> Path:
    """The model folder or checkpoint that `path` stands for."""
    if path.is_file():
        return path.parent if path.name == MANIFEST else path
    if (path / MANIFEST).is_file():
        return path
    for inside in ("model", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        candidate = path / inside
        if candidate.is_file() or (candidate / MANIFEST).is_file():
            return candidate
    if path.is_dir():
        raise MissingInputError(f"{path}: has no model/ and no checkpoint; is the run still before its first one?")
    runs = sorted(folder.name for folder in path.parent.glob("*/") if (folder / "checkpoints").is_dir())
    hint = f"; {path.parent} has {', '.join(runs[:8])}" if runs else "; train one with scripts/train.py fit"
    raise MissingInputError(f"{path}: no such model{hint}")


def _read_folder(folder: Path) -> Bundle:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not {"format", "model", "sha256"} <= manifest.keys():
        raise DataError(f"{folder / MANIFEST}: is not a tinylm model folder")
    if manifest["format"] != FORMAT:
        raise DataError(f"{folder / MANIFEST}: has format {manifest['format']}, this tinylm reads format {FORMAT}")
    for name, recorded in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: is missing from the model folder")
        if sha256_file(folder / name) != recorded:
            raise DataError(f"{folder / name}: is damaged (SHA-256 differs from the recorded one); export it again")
    model = rebuild_model(manifest["model"], load_file(folder / WEIGHTS), source=str(folder))
    return Bundle(model, load_tokenizer(folder / TOKENIZER), manifest.get("info", {}))


def rebuild_model(config: dict[str, Any], weights: dict[str, torch.Tensor], source: str) -> TransformerLM:
    """The network of a stored config with stored weights, in the weights' own types.

    Raises:
        DataError: if config and weights do not fit each other; `source` is named.
    """
    try:
        with torch.device("meta"):  # no time spent on random weights
            model = TransformerLM(ModelConfig.from_dict(config))
        if model.config.tie_embeddings:
            weights = {**weights, "head.weight": weights["embedding.weight"]}
        model.load_state_dict(weights, assign=True)
    except (ConfigError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{source}: its weights and its config do not fit ({reason})") from error
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


# --- checkpoints, which training/checkpoint.py writes


def checkpoint_entry(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint carries under the key `tinylm`, so that `load` needs no YAML."""
    return {"format": FORMAT, "model": config.to_dict(), "tokenizer": tokenizer.to_dict()}


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
    return checkpoint


def _read_checkpoint_model(path: Path) -> Bundle:
    checkpoint = read_checkpoint(path)
    entry = checkpoint["tinylm"]
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
    model = rebuild_model(entry["model"], weights, source=str(path))
    return Bundle(model, Tokenizer.from_dict(entry["tokenizer"], source=str(path)), {"step": checkpoint["global_step"]})
