"""Loads a tokenizer from any supported file or folder."""

from pathlib import Path

from tinylm.errors import MissingInputError, notice
from tinylm.files import read_json
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, is_tokenizer_json
from tinylm.tokenizer.formats.merges import require
from tinylm.tokenizer.formats.tiktoken import read_tiktoken


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a tokenizer from a file or a folder.

    A file is one written by `Tokenizer.save`, Hugging Face's tokenizer.json, or tiktoken's ranks if its name ends in
    .tiktoken. A folder holds tokenizer.tinylm.json, else tokenizer.json, else GPT-2's vocab.json and merges.txt.

    Raises:
        MissingInputError: if there is no tokenizer.
        DataError: if it is damaged or of another format.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".tiktoken":
        notice(f"{path} does not record its pattern: assuming gpt2; read_tiktoken takes another pattern")
        return read_tiktoken(path)
    values = read_json(require(path))
    if is_tokenizer_json(values):
        return from_tokenizer_json(values, source=str(path))
    return Tokenizer.from_dict(values, source=str(path))


def _load_folder(folder: Path) -> Tokenizer:
    for name in ("tokenizer.tinylm.json", "tokenizer.json"):
        if (folder / name).is_file():
            return load_tokenizer(folder / name)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return BPETokenizer.from_gpt2(folder / "vocab.json", folder / "merges.txt")
    raise MissingInputError(f"{folder}: has no tokenizer.tinylm.json, no tokenizer.json, no vocab.json with merges.txt")
