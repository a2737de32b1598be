"""`tinylm generate --model X.npz`: continues prompts with a checkpoint of `tinylm train-numpy`, without PyTorch."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.errors import ConfigError, DataError, MissingInputError, NumericError, notice
from tinylm.generation.options import SamplingConfig
from tinylm.reference import NumpyTransformerLM, files
from tinylm.reference.generate import generate
from tinylm.tokenizer import Tokenizer, load_tokenizer

SAMPLING = ("temperature", "top_k", "top_p")


def run(options: argparse.Namespace) -> None:
    """Prints the prompt with its continuations.

    Raises:
        ConfigError: if the prompt does not fit the context.
        NumericError: if the model's logits are not finite.
        MissingInputError: if the archive or a tokenizer beside it is missing.
        DataError: if the archive is damaged or something else.
    """
    path = Path(options.model)
    notice(f"loading {path}, in NumPy")
    model, tokenizer = read_model(path), read_tokenizer(path)
    end, prompt = tokenizer.end_of_text, options.prompt or ""
    ids = tokenizer.opening + tokenizer.encode(prompt) or ([] if end is None else [end])
    if not 0 < len(ids) <= model.config.max_seq_len:
        raise ConfigError(f"the prompt must have 1 to {model.config.max_seq_len} tokens, got {len(ids)}")
    sampling: dict[str, Any] = {name: getattr(options, name) for name in SAMPLING}
    sampling["max_new_tokens"] = options.max_new_tokens or SamplingConfig.max_new_tokens
    for number in range(options.num_samples):
        seed = None if options.seed is None else (options.seed + number) % (1 << 64)
        try:
            row = generate(model, np.array([ids]), separator=end, seed=seed, tokens=tokenizer.vocab_size, **sampling)[0]
        except FloatingPointError as error:
            raise NumericError(f"{path}: {error}; use another checkpoint") from error
        text = tokenizer.decode(tokenizer.until_stop(row.tolist()), continues=True)
        print(*(["---"] if number else []), prompt + text, sep="\n")


def read_model(path: Path) -> NumpyTransformerLM:
    """The model of an archive."""
    try:
        return files.load(path)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such model") from error
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as an archive of a model ({error})") from error


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of an archive: beside it, or in its run folder."""
    for folder in (path.parent, path.parent.parent):
        if (folder / files.TOKENIZER).is_file():
            return load_tokenizer(folder / files.TOKENIZER)
    raise MissingInputError(f"{path}: {files.TOKENIZER} is missing beside it; put the model's tokenizer there")
