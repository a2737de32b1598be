"""Reading and writing: a tinylm model folder, or a NumPy archive.

A model folder is `tinylm.json` (the architecture, and checksums of the other two), `model.safetensors` (the weights)
and the tokenizer, which is no business of the twin: `save` leaves it alone and takes its checksum. An archive `.npz`
has the arrays by name, and the architecture under `config` as JSON; a checkpoint of train.py is one, with more in it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tinylm.reference.config import Config
from tinylm.reference.transformer import NumpyTransformerLM

MANIFEST, WEIGHTS, TOKENIZER = "tinylm.json", "model.safetensors", "tokenizer.tinylm.json"
TRAINING = "training/"  # before the names of what a checkpoint has besides a model: see train.py


def load(path: str | Path, dtype: type | np.dtype | None = None) -> NumpyTransformerLM:
    """The model of a model folder, of a run folder (its `model/`), or of an archive.

    Args:
        path: where it is
        dtype: what to compute in; None: the stored type

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is something else, or damaged.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        if "config" not in arrays:
            raise ValueError(f"{path}: has no config; is it an archive of a model?")
        config = json.loads(str(arrays.pop("config")))
        arrays = {name: array for name, array in arrays.items() if not name.startswith(TRAINING)}
    else:
        config, arrays = read_folder(path if (path / MANIFEST).exists() else path / "model")
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    return NumpyTransformerLM(Config.from_dict(config), arrays)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config and the weights of a model folder; errors as `load`'s."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder.parent if folder.name == 'model' else folder}: no such model folder")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("layers"):
        raise ValueError(f"{folder}: has layers of another kind (int8, int4), which the twin does not know")
    if sha256_file(folder / WEIGHTS) != manifest["sha256"][WEIGHTS]:
        raise ValueError(f"{folder / WEIGHTS}: is damaged (SHA-256 differs from the recorded one)")
    return manifest["model"], load_file(folder / WEIGHTS)


def save(model: NumpyTransformerLM, path: str | Path, info: dict[str, Any] | None = None) -> None:
    """Writes a model folder, where the tokenizer must be already, or an archive if the name ends in .npz.

    Args:
        model: the network
        path: where to
        info: of a folder: what else to record (step, validation loss ...), plain values

    Raises:
        FileNotFoundError: if the folder has no tokenizer, without which it would be no model folder.
    """
    path = Path(path)
    if path.suffix == ".npz":
        temporary = path.with_name(f".tmp-{path.name}")
        arrays: dict[str, Any] = {"config": json.dumps(model.config.to_dict()), **model.parameters}
        np.savez(temporary, **arrays)
        return os.replace(temporary, path)
    if not (path / TOKENIZER).is_file():
        raise FileNotFoundError(f"{path / TOKENIZER}: missing; put the tokenizer there first")
    save_file({name: np.ascontiguousarray(array) for name, array in model.parameters.items()}, path / WEIGHTS)
    manifest = {"format": 1, "model": model.config.to_dict(), "info": info or {}}
    checksums = {MANIFEST: sha256_json(manifest)}
    checksums |= {name: sha256_file(path / name) for name in (WEIGHTS, TOKENIZER)}
    text = json.dumps({**manifest, "sha256": checksums}, indent=1, ensure_ascii=False)
    (path / MANIFEST).write_text(text + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256_json(data: Any) -> str:
    """SHA-256 of the canonical JSON of `data`: equal for equal data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()
