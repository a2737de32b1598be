"""Models of other programs, to be converted or trained further."""

from pathlib import Path

from tinylm.bundle import Bundle, load_bundle
from tinylm.data.pretrained import pretrained_tokenizer
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import default_cache_dir, read_range
from tinylm.interop import find_meta, load_huggingface, load_llama2c, load_nanogpt, read_meta, read_tokenizer_bin
from tinylm.locate import CONVERTIBLE, find_model, is_huggingface, is_llama2c
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer, load_tokenizer

GPT2_ROWS = range(50257, 50305)  # embeddings of nanoGPT with GPT-2's tokenizer, padded or not


def find_base(path: str) -> Path:
    """The path of a base model: a Hugging Face folder, or what `find_model` finds."""
    return Path(path) if is_huggingface(Path(path)) else find_model(path)


def load_base(path: str) -> Bundle:
    """The model at a path of `find_base`. Errors are those of `load_bundle` and `load_huggingface`."""
    if not is_huggingface(Path(path)):
        return load_bundle(path)
    return Bundle(*load_huggingface(path), {"from": path})


def read_foreign(model: str, tokenizer: Path | None) -> tuple[TransformerLM, Tokenizer]:
    """The model and the tokenizer of a Hugging Face folder, a ckpt.pt of nanoGPT or a .bin of llama2.c.

    Raises:
        MissingInputError: if a file is missing.
        DataError: if it is damaged, or has a feature that tinylm does not support.
    """
    path = Path(model)
    if not path.exists():
        raise MissingInputError(f"{path}: no such folder or file; tinylm downloads no models, so download it first")
    head = read_range(path, 0, 28) if path.is_file() else b""
    if head.startswith((b"PK", b"\x80")):
        return read_nanogpt(path, tokenizer)
    if is_llama2c(head):
        return read_llama2c(path, tokenizer)
    if head:
        raise DataError(f"{path}: is not a model that tinylm reads; {CONVERTIBLE}")
    if tokenizer is not None:
        raise ConfigError("--tokenizer: a Hugging Face folder has its own; leave it out")
    return load_huggingface(model)


def read_nanogpt(path: Path, given: Path | None) -> tuple[TransformerLM, Tokenizer]:
    """nanoGPT's model, with the given tokenizer, the characters of its data set, or GPT-2's tokenizer."""
    model, dataset = load_nanogpt(path)
    found = given or find_meta(path, dataset)
    if found is not None:
        notice(f"reading {found}")
        tokenizer = read_tokenizer(found)
    elif model.config.vocab_size in GPT2_ROWS:
        notice("found no meta.pkl: taking GPT-2's tokenizer, as nanoGPT does")
        tokenizer = pretrained_tokenizer("gpt2", default_cache_dir())
        end = tokenizer.end_of_text
        tokenizer = tokenizer.with_marks(None, end, [] if end is None else [end])  # nothing begins a prompt
    else:
        folder = f"nanoGPT's data/{dataset}" if dataset else "the folder of its data set"
        raise MissingInputError(f"{path}: its characters are in meta.pkl in {folder}; give it with --tokenizer")
    return model, checked(tokenizer, model, path)


def read_llama2c(path: Path, given: Path | None) -> tuple[TransformerLM, Tokenizer]:
    """llama2.c's model, with the given tokenizer, or the tokenizer.bin in its folder or the one above."""
    model = load_llama2c(path)
    near = [folder / "tokenizer.bin" for folder in (path.resolve().parent, path.resolve().parent.parent)]
    found = given or next((each for each in near if each.is_file()), None)
    if found is None:
        raise MissingInputError(f"{path}: found no tokenizer.bin beside it; give it with --tokenizer")
    notice(f"reading {found}")
    return model, checked(read_tokenizer(found), model, path)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a meta.pkl, a tokenizer.bin, or any file or folder that tinylm reads."""
    if path.is_file() and read_range(path, 0, 1) == b"\x80":
        return read_meta(path)
    if path.is_file() and path.suffix == ".bin":
        return read_tokenizer_bin(path)
    return load_tokenizer(path)


def checked(tokenizer: Tokenizer, model: TransformerLM, path: Path) -> Tokenizer:
    """The tokenizer; refuses one with ids that the model lacks."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"{path}: has {model.config.vocab_size} embeddings, the tokenizer {tokenizer.vocab_size} tokens"
        )
    return tokenizer
