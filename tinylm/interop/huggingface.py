"""Hugging Face's model folders: export, so that transformers loads them without our code, and import.

    export_huggingface(model, tokenizer, "mine")        # AutoModelForCausalLM.from_pretrained("mine")
    model, tokenizer = load_huggingface("gpt2")         # a folder with config.json, model.safetensors, tokenizer.json

Both keep weights bit by bit and logits up to rounding. A config without a counterpart is refused; docs/interop.md lists
the counterparts. Left out: pickled weights, which can execute code, and downloads from the Hub.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tinylm.bundle import rebuild_model
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import atomic_folder, read_json, write_json, write_text
from tinylm.interop.card import model_card
from tinylm.interop.chat_template import chat_settings, read_chat_template
from tinylm.interop.configs import check_generation_config, export_config, import_config
from tinylm.interop.families import choose_family
from tinylm.interop.plain import plain_weights
from tinylm.interop.weights import WEIGHTS, export_weights, import_weights, read_weights
from tinylm.model import TransformerLM
from tinylm.targets import HUGGINGFACE_FOLDER, check_target
from tinylm.tokenizer import Tokenizer, write_tokenizer_json
from tinylm.tokenizer.formats.folder import (
    BEGINS,
    CONFIG,
    GENERATION,
    IDS,
    NAMED,
    SETTINGS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    has_tokenizer,
    read_folder,
)
from tinylm.tokenizer.formats.merges import reading

CARD = "README.md"
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # the defaults of our Generator


# --- export


def export_huggingface(
    model: TransformerLM,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    info: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a folder for `AutoModelForCausalLM` and `AutoTokenizer` atomically.

    Args:
        model: a standard model; quantized layers are exported with their dequantized weights
        tokenizer: the model's tokenizer. None: export the weights alone
        folder: the folder to write
        info: information on the run, for the model card
        overwrite: replace an earlier export

    Returns:
        the name of the class of transformers

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced, or is something else.
        ConfigError: if the config or the tokenizer has no counterpart, the tokenizer has more tokens than the model, or
            the model is not standard.
    """
    check_target(folder, HUGGINGFACE_FOLDER, overwrite)
    weights = plain_weights(model, "an export")
    config = model.config
    family = choose_family(config)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {config.vocab_size}")
    fields = {"architectures": [family.architecture], "model_type": family.model_type, **export_config(config, family)}
    ends, generation, settings = token_settings(tokenizer, config.max_seq_len)
    fields |= ends
    fields["torch_dtype"] = str(model.embedding.weight.dtype).removeprefix("torch.")
    with atomic_folder(folder) as new:
        if tokenizer is not None:
            write_tokenizer_json(tokenizer, new / TOKENIZER)
            write_json(new / SETTINGS, settings | chat_settings(tokenizer, info or {}))
        write_json(new / CONFIG, fields)
        write_json(new / GENERATION, generation)
        save_file(export_weights(weights, config, family), new / WEIGHTS, metadata={"format": "pt"})
        write_text(new / CARD, model_card(config, family, tokenizer, Path(folder).name, info or {}))
    return family.architecture


def token_settings(tokenizer: Tokenizer | None, context: int) -> tuple[dict, dict, dict]:
    """The ids of config.json, and the contents of generation_config.json and tokenizer_config.json.

    Those of an imported tokenizer are written as they were read (`Tokenizer.origin`).
    """
    settings: dict[str, Any] = {**TOKENIZER_CONFIG, "model_max_length": context}
    if tokenizer is not None and tokenizer.imported:
        ends = dict.fromkeys(IDS) | tokenizer.origin.get(CONFIG, {})
        given = {name: value for name, value in ends.items() if value is not None}
        return ends, tokenizer.origin.get(GENERATION, given), settings | tokenizer.origin.get(SETTINGS, {})
    begin, end, stops = (None, None, ()) if tokenizer is None else tokenizer.marks
    names = {} if tokenizer is None else {token: name for name, token in tokenizer.special_tokens.items()}
    first = end if begin is None else begin
    tokens = zip(NAMED[:3], (first, end, end), strict=True)
    settings |= {field: names[token] for field, token in tokens if token in names} | {BEGINS: begin is not None}
    eos: Any = list(stops) if len(stops) > 1 else end
    ends = {"bos_token_id": first, "eos_token_id": eos, "pad_token_id": None}
    return ends, ends | {"pad_token_id": end, **SAMPLING}, settings


# --- import


def load_huggingface(folder: str | Path) -> tuple[TransformerLM, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a Hugging Face folder.

    Args:
        folder: has config.json, tokenizer.json (or vocab.json and merges.txt) and safetensors, in one file or shards

    Raises:
        MissingInputError: if a file is missing.
        DataError: if a file is damaged, or has a feature that tinylm does not support; names it.
    """
    folder = Path(folder)
    model = load_huggingface_model(folder)
    if not has_tokenizer(folder):
        raise MissingInputError(
            f"{folder}: has no {TOKENIZER}; save one with AutoTokenizer, or load the weights alone with "
            "tinylm.interop.load_huggingface_model"
        )
    tokenizer = read_folder(folder).with_chat(read_chat_template(folder))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"{folder}: vocab_size is {model.config.vocab_size} in {CONFIG}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens; a model may have more, not fewer"
        )
    return model, tokenizer


def load_huggingface_model(folder: str | Path) -> TransformerLM:
    """The model of a Hugging Face folder, without a tokenizer; raises as `load_huggingface` does."""
    folder = Path(folder)
    if folder.is_file():
        raise DataError(f"{folder}: is a file; give a Hugging Face folder, with config.json, safetensors and tokenizer")
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; models are loaded from folders only, so download it first")
    if not (folder / CONFIG).is_file():
        raise MissingInputError(f"{folder}: has no {CONFIG}; give a Hugging Face model folder")
    values = read_json(folder / CONFIG)
    with reading(folder / CONFIG, "a config.json of Hugging Face"):
        config, family = import_config(values)
    if (folder / GENERATION).is_file():
        values = read_json(folder / GENERATION)
        with reading(folder / GENERATION, "a generation_config.json of Hugging Face"):
            check_generation_config(values)
    weights = read_weights(folder)
    with reading(folder, "a Hugging Face model folder"):
        ours = import_weights(weights, config, family)
    return rebuild_model(config.to_dict(), ours, source=str(folder)).eval()
