"""Models in files: a tinylm model folder, or a NumPy archive.

A model folder holds `tinylm.json` (the architecture, and checksums of the other two files), `model.safetensors` (the
weights) and the tokenizer, which the twin does not use: `save` records its checksum. An archive `.npz` holds the arrays
by name, and the architecture under `config` as JSON. A training checkpoint is an archive with more in it.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tinylm.reference.config import Config
from tinylm.reference.transformer import NumpyTransformerLM

MANIFEST, WEIGHTS, TOKENIZER = "tinylm.json", "model.safetensors", "tokenizer.tinylm.json"
TRAINING = "training/"  # prefix of the names that a checkpoint adds to a model


def load(path: str | Path, dtype: type | np.dtype | None = None) -> NumpyTransformerLM:
    """The model of a model folder, of a run folder (its `model/`), or of an archive.

    Args:
        path: the folder or file
        dtype: the type to compute in. Default: the stored type

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is something else, or damaged.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = {name: array for name, array in read_arrays(path).items() if not name.startswith(TRAINING)}
        config = parse_json(str(arrays.pop("config")), path)
    else:
        config, arrays = read_folder(path if (path / MANIFEST).exists() else path / "model")
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    return NumpyTransformerLM(Config.from_dict(config), arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, checked by their CRCs.

    Raises:
        ValueError: if the archive is damaged, or not one of a model.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        # RuntimeError: for flags of an encrypted entry, or of a compression that Python does not support
        raise ValueError(f"{path}: is damaged ({error}); use another") from error
    if "config" not in arrays:
        raise ValueError(f"{path}: has no config; is it an archive of a model?")
    return arrays


def parse_json(text: str, path: Path) -> Any:
    """The value of a JSON text of a file; ValueError for any other text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path}: has JSON that is nested too deeply") from error


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config and the weights of a model folder; raises the same errors as `load`."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder.parent if folder.name == 'model' else folder}: no such model folder")
    manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"), folder / MANIFEST)
    if manifest.get("layers"):
        raise ValueError(f"{folder}: has quantized layers (int8, int4), which the twin does not support")
    if sha256_file(folder / WEIGHTS) != manifest["sha256"][WEIGHTS]:
        raise ValueError(f"{folder / WEIGHTS}: is damaged (SHA-256 differs from the recorded one)")
    return manifest["model"], load_file(folder / WEIGHTS)


def save(
    model: NumpyTransformerLM, path: str | Path, info: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Writes an archive if the name ends in .npz, otherwise a model folder, which must already hold the tokenizer.

    Args:
        model: the network
        path: the file or folder
        info: recorded in a folder: step, validation loss and so on, as plain values
        overwrite: replace an earlier model

    Raises:
        FileExistsError: if there is a file of that name, and it is not to be replaced or is not a model.
        FileNotFoundError: if the folder has no tokenizer.
    """
    path = Path(path)
    earlier = path if path.suffix == ".npz" else path / MANIFEST
    if os.path.lexists(earlier) and not (overwrite and is_model(path)):
        raise FileExistsError(f"{earlier}: exists; choose another path, or set overwrite for a model")
    if path.suffix == ".npz":
        return write_archive(path, model)
    if not (path / TOKENIZER).is_file():
        raise FileNotFoundError(f"{path / TOKENIZER}: missing; put the tokenizer there first")
    save_file({name: np.ascontiguousarray(array) for name, array in model.parameters.items()}, path / WEIGHTS)
    manifest = {"format": 1, "model": model.config.to_dict(), "info": info or {}}
    checksums = {MANIFEST: sha256_json(manifest)}
    checksums |= {name: sha256_file(path / name) for name in (WEIGHTS, TOKENIZER)}
    text = json.dumps({**manifest, "sha256": checksums}, indent=1, ensure_ascii=False)
    (path / MANIFEST).write_text(text + "\n", encoding="utf-8")


def is_model(path: Path) -> bool:
    """Whether this archive or folder is a model for `load`, even if damaged."""
    if path.suffix != ".npz":
        return (path / MANIFEST).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return "config.npy" in archive.namelist()
    except (OSError, RuntimeError, zipfile.BadZipFile):
        return False


def write_archive(path: Path, model: NumpyTransformerLM, extra: dict[str, Any] | None = None) -> None:
    """Writes an archive atomically: killed at any moment, it leaves the earlier file or the new one, whole.

    Args:
        path: the file, .npz
        model: the network
        extra: further arrays, under names that begin with `training/`

    Raises:
        OSError: if the disk is full or fails; the reason includes the number of bytes written.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, config=json.dumps(model.config.to_dict()), **model.parameters, **extra or {})
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with an empty file
        os.replace(temporary, path)
    except OSError as error:
        size = temporary.stat().st_size if temporary.exists() else 0
        raise OSError(error.errno, f"{error.strerror}, after {size:,} bytes", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256_json(data: Any) -> str:
    """SHA-256 of the canonical JSON of `data`: equal for equal data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()
