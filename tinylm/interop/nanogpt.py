"""nanoGPT's checkpoints: `ckpt.pt`, and the characters in `meta.pkl`.

    model, dataset = load_nanogpt("out/ckpt.pt")
    tokenizer = read_meta("data/shakespeare_char/meta.pkl")

Weights are copied bit for bit. The activation is the exact GELU, as in nanoGPT since May 2023; a checkpoint does not
record whether an older nanoGPT trained it with the tanh form. Both files are pickles. They are read by unpicklers that
create only tensors and plain containers and call nothing else.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from tinylm.bundle import rebuild_model
from tinylm.checks import require
from tinylm.errors import DataError
from tinylm.files import check_seal, file_size, open_input
from tinylm.interop.forms import check_weights, grouped, weight_shapes
from tinylm.interop.names import GPT2_MODULES
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.size import check_size
from tinylm.tokenizer import CharTokenizer
from tinylm.tokenizer.formats.merges import reading

PREFIX = "_orig_mod."  # of the weights of a compiled model
FIELDS = {
    "n_layer": "num_layers", "n_head": "num_heads", "n_embd": "d_model", "block_size": "max_seq_len",
    "vocab_size": "vocab_size", "dropout": "dropout", "bias": "bias",
}  # fmt: skip
FORM = {"positional_encoding": "learned", "norm": "layernorm", "activation": "gelu", "qk_norm": False}
FORM |= {"norm_eps": 1e-5, "tie_embeddings": True}
DEFAULTS = {"dropout": 0.0, "bias": True}  # of older checkpoints
MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")  # a buffer of nanoGPT without flash attention
LARGEST_META = 64 << 20  # bytes


def load_nanogpt(path: str | Path) -> tuple[TransformerLM, str | None]:
    """The model of a ckpt.pt, in evaluation mode, and the name of its data set if it is recorded.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, not nanoGPT's, or has a field that tinylm does not support; names it.
        NumericError: if a weight is NaN or infinite.
    """
    path = Path(path)
    checkpoint = _read(path)
    with reading(path, "a checkpoint of nanoGPT"):
        config = _config(checkpoint["model_args"])
        stored = {str(name).removeprefix(PREFIX): weight for name, weight in checkpoint["model"].items()}
        check_size(config, sum(each.numel() for each in stored.values()), len(stored))
        weights = _weights(stored, config)
    settings = checkpoint.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    return rebuild_model(config.to_dict(), weights, source=str(path)).eval(), dataset


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint."""
    file_size(path)
    check_seal(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it contains {refused[1]}, and only tensors and plain values are" if refused else "it is damaged"
        raise DataError(f"{path}: is not read: {reason}") from error
    except Exception as error:  # torch raises many types of exceptions for damaged files
        raise DataError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    parts = ("model_args", "model")
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(part), dict) for part in parts):
        raise DataError(f"{path}: is not a checkpoint of nanoGPT: it must have model_args and model")
    if "dim" in checkpoint["model_args"]:
        export = f"python export.py {path.stem}.bin --version 0 --checkpoint {path}"
        raise DataError(f"{path}: is a checkpoint of llama2.c; write its .bin there, and give that: {export}")
    return checkpoint


def _config(arguments: dict[str, Any]) -> ModelConfig:
    for name, value in arguments.items():
        require(name in FIELDS, f"model_args: {name} is {value!r}; tinylm does not support this field")
    arguments = DEFAULTS | arguments
    for name in FIELDS:
        require(name in arguments, f"model_args: {name} is missing")
    return ModelConfig.from_dict(FORM | {ours: arguments[name] for name, ours in FIELDS.items()})


def _weights(stored: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our weights, by name."""
    stored = {name: weight for name, weight in stored.items() if not (MASK.fullmatch(name) and weight.dim() == 4)}
    head, embedding = stored.pop("lm_head.weight", None), stored.get("transformer.wte.weight")
    if head is not None and embedding is not None:
        require(torch.equal(head, embedding), "lm_head.weight differs from transformer.wte.weight; nanoGPT ties them")
    shapes = weight_shapes(config)
    groups = grouped(shapes, GPT2_MODULES)
    rows = {theirs: sum(shapes[name][0] for name in ours) for theirs, ours in groups.items()}
    check_weights(stored, {name: torch.Size((rows[name], *shapes[ours[0]][1:])) for name, ours in groups.items()})
    found = {}
    for theirs, ours in groups.items():
        parts = stored[theirs].split([shapes[name][0] for name in ours])
        found |= {name: part.clone() for name, part in zip(ours, parts, strict=True)}
    return found


# --- meta.pkl


def find_meta(checkpoint: str | Path, dataset: str | None) -> Path | None:
    """The meta.pkl of a checkpoint's data set, beside the checkpoint or in nanoGPT's folders; None if there is none.

    nanoGPT runs in its root, with checkpoints in `out*/` and data in `data/<dataset>/`.
    """
    beside = Path(checkpoint).resolve().parent
    folders = [beside]
    if isinstance(dataset, str) and re.fullmatch(r"[\w-][\w.-]*", dataset):
        folders += [root / "data" / dataset for root in (beside.parent, beside, Path())]
    return next((folder / "meta.pkl" for folder in folders if (folder / "meta.pkl").is_file()), None)


class _PlainUnpickler(pickle.Unpickler):
    """Creates numbers, strings and built-in containers only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuses every class and function."""
        raise DataError(f"contains {module}.{name}; only numbers, strings and containers are read")

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuses references to objects outside the file."""
        raise DataError(f"refers to an object outside of it, {pid!r}")


def read_meta(path: str | Path) -> CharTokenizer:
    """The tokenizer that a meta.pkl describes: one id per character.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, contains anything but plain values, or describes another kind of tokenizer.
    """
    path = Path(path)
    with open_input(path) as file:
        data = file.read(LARGEST_META + 1)
    try:
        require(len(data) <= LARGEST_META, f"has more than {LARGEST_META:,} bytes")
        for code, argument, _ in pickletools.genops(data):
            place = int(argument) if "PUT" in code.name and argument is not None else 0
            require(place <= len(data), f"memo index {place} is larger than the file")
        meta = _PlainUnpickler(io.BytesIO(data)).load()
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: is not read: {error}") from error
    except Exception as error:  # pickle raises many types of exceptions for damaged files
        raise DataError(f"{path}: is damaged, or not a pickle ({type(error).__name__})") from error
    with reading(path, "a meta.pkl of nanoGPT"):
        return CharTokenizer(_characters(meta))


def _characters(meta: Any) -> str:
    """The characters of a meta.pkl in the order of their ids."""
    require(isinstance(meta, dict), "must be a dictionary")
    for name in ("vocab_size", "itos", "stoi"):
        require(name in meta, f"{name} is missing")
    for name in meta:
        require(name in ("vocab_size", "itos", "stoi"), f"{name}: tinylm does not support this field")
    characters, ids = meta["itos"], meta["stoi"]
    require(isinstance(characters, dict) and isinstance(ids, dict), "itos and stoi must be dictionaries")
    require({*characters} == {*range(len(characters))}, f"itos must have the ids 0 to {len(characters) - 1}")
    require(meta["vocab_size"] == len(characters), f"vocab_size is {meta['vocab_size']}, itos has {len(characters)}")
    for each in characters.values():
        require(isinstance(each, str) and len(each) == 1, f"itos has {each!r}, which is not a character")
    require(ids == {each: token for token, each in characters.items()}, "stoi is not the inverse of itos")
    return "".join(characters[token] for token in range(len(characters)))
