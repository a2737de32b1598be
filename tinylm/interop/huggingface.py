"""Model folders of Hugging Face's: out, so that transformers loads them without any code of ours; and in.

    export_huggingface(model, tokenizer, "mine")        # AutoModelForCausalLM.from_pretrained("mine")
    model, tokenizer = load_huggingface("gpt2")         # a folder with config.json, model.safetensors, tokenizer.json

Both ways the logits are the same and the weights equal bit by bit; a config without a counterpart is refused.
docs/interop.md says which has one. Left out: pickled weights, which can execute anything, and the Hub.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tinylm.bundle import rebuild_model
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import atomic_folder, read_json, write_json, write_text
from tinylm.interop.card import model_card
from tinylm.interop.configs import describe, understand
from tinylm.interop.families import choose_family
from tinylm.interop.weights import WEIGHTS, export_weights, import_weights, read_weights
from tinylm.model import TransformerLM
from tinylm.model.known import check_known
from tinylm.model.quantized import quantized_layers
from tinylm.tokenizer import END_OF_TEXT, Tokenizer, read_tokenizer_json, write_tokenizer_json
from tinylm.tokenizer.formats.merges import reading

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


# --- out


def export_huggingface(
    model: TransformerLM, tokenizer: Tokenizer | None, folder: str | Path, info: dict[str, Any] | None = None
) -> str:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, atomically; an earlier one is replaced.

    Args:
        model: the network
        tokenizer: of the same vocabulary; None: the weights alone
        folder: where to
        info: what is known of the run, for the model card

    Returns:
        the class of transformers that it will be

    Raises:
        ConfigError: if the architecture has no counterpart, with the field, or the network has a part that its config
            does not describe; if the tokenizer has no counterpart, or another vocabulary.
    """
    check_known(model, "an export")
    for name, _ in quantized_layers(model):
        raise ConfigError(f"an export: {name} is quantized; take the model that it was made from")
    config = model.config
    family = choose_family(config)
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {config.vocab_size}")
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    end = None if tokenizer is None else tokenizer.end_of_text
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    kind = {"architectures": [family.architecture], "model_type": family.model_type}
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    with atomic_folder(folder) as new:
        if tokenizer is not None:
            write_tokenizer_json(tokenizer, new / TOKENIZER)
            write_json(new / "tokenizer_config.json", tokenizer_config(tokenizer, config.max_seq_len))
        write_json(new / CONFIG, {**kind, **describe(config, family), **tokens, "torch_dtype": dtype})
        write_json(new / "generation_config.json", generation_config(end))
        save_file(export_weights(weights, config, family), new / WEIGHTS, metadata={"format": "pt"})
        write_text(new / "README.md", model_card(config, family, tokenizer, Path(folder).name, info or {}))
    return family.architecture


def generation_config(end: int | None) -> dict[str, Any]:
    """What `generate` does without options: as our Generator, it draws from all tokens and ends at the end of text."""
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, **drawn}


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json. Nothing is put around a text, and nothing tidied."""
    end = dict.fromkeys(["bos_token", "eos_token", "pad_token"], END_OF_TEXT)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        **(end if tokenizer.end_of_text is not None else {}),
    }


# --- in


def load_huggingface(folder: str | Path) -> tuple[TransformerLM, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a folder of Hugging Face's.

    Args:
        folder: with config.json, tokenizer.json and safetensors, in one file or in shards

    Raises:
        MissingInputError: if a file is not there.
        DataError: if one is damaged, or has what would change the numbers and tinylm does not have, with its name.
    """
    folder = Path(folder)
    model = load_huggingface_model(folder)
    if not (folder / TOKENIZER).is_file():
        raise MissingInputError(
            f"{folder}: has no {TOKENIZER}; save it there by AutoTokenizer, "
            "or take the weights alone by tinylm.interop.load_huggingface_model"
        )
    tokenizer = read_tokenizer_json(folder / TOKENIZER)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise DataError(
            f"{folder}: vocab_size is {model.config.vocab_size} in {CONFIG}, and {TOKENIZER} has "
            f"{tokenizer.vocab_size} tokens; they must be the same"
        )
    return model, tokenizer


def load_huggingface_model(folder: str | Path) -> TransformerLM:
    """The network alone. Arguments and errors as `load_huggingface`'s."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; models are loaded from folders only, download it first")
    if not (folder / CONFIG).is_file():
        raise MissingInputError(f"{folder}: has no {CONFIG}; give a model folder of Hugging Face's")
    values = read_json(folder / CONFIG)
    with reading(folder / CONFIG, "a config.json of Hugging Face's"):
        config, family = understand(values)
    weights = read_weights(folder)
    with reading(folder, "a model folder of Hugging Face's"):
        ours = import_weights(weights, config, family)
    return rebuild_model(config.to_dict(), ours, source=str(folder)).eval()
