"""Loads a tokenizer from any supported file or folder."""

from pathlib import Path

from tinylm.errors import DataError, MissingInputError, notice
from tinylm.files import read_json
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.formats.folder import has_tokenizer, read_folder
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, is_tokenizer_json
from tinylm.tokenizer.formats.merges import require
from tinylm.tokenizer.formats.sentencepiece import is_sentencepiece, read_sentencepiece
from tinylm.tokenizer.formats.tiktoken import read_tiktoken
from tinylm.tokenizer.formats.vocab_txt import is_vocab_txt, vocab_txt_values
from tinylm.tokenizer.marks import end_marks


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a tokenizer from a file or a folder.

    A file is one written by `Tokenizer.save`, Hugging Face's tokenizer.json, a SentencePiece model, BERT's vocab.txt,
    or tiktoken's ranks if its name ends in .tiktoken. A folder holds tokenizer.tinylm.json, else tokenizer.json, else
    vocab.json and merges.txt, else tokenizer.model, else vocab.txt.

    A tokenizer of another program gets its end-of-text token as its only mark, as tinylm's training needs it.
    `read_folder` keeps the marks of the model instead.

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
    if _is_sentencepiece(require(path)):
        tokenizer = read_sentencepiece(path)
        return _for_training(tokenizer).with_origin(tokenizer.origin)
    if is_vocab_txt(require(path)):
        return _for_training(from_tokenizer_json(vocab_txt_values(path, {}), source=str(path)))
    if foreign := _foreign(path):
        raise DataError(f"{path}: {foreign}")
    values = read_json(path)
    numbers = isinstance(values, dict) and all(type(each) is int for each in values.values())
    if numbers and (path.name == "vocab.json" or len(values) >= 256):
        raise DataError(f"{path}: is the vocabulary alone; give the folder that holds vocab.json and merges.txt")
    if is_tokenizer_json(values):
        return _for_training(from_tokenizer_json(values, source=str(path)))
    return Tokenizer.from_dict(values, source=str(path))


def _for_training(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with its end-of-text token as the only mark, which tinylm's training puts between documents."""
    return tokenizer.with_marks(*end_marks(tokenizer.end_of_text))


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.tinylm.json").is_file():
        return load_tokenizer(folder / "tokenizer.tinylm.json")
    if has_tokenizer(folder):
        return _for_training(read_folder(folder))
    if (folder / "tokenizer.model").is_file():
        return load_tokenizer(folder / "tokenizer.model")
    raise MissingInputError(f"{folder}: has no tokenizer.tinylm.json, no tokenizer.json, no vocab.json with merges.txt")


def _is_sentencepiece(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    return is_sentencepiece(head) or (path.suffix == ".model" and not head.startswith(b"minbpe v"))


def _foreign(path: Path) -> str | None:
    """Describes an unreadable file of another program and the remedy; None if the file may be readable."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(b"minbpe v"):
        return (
            "is a tokenizer of minbpe; write base64 of each token's bytes, and its id, on the lines of a .tiktoken file"
        )
    if head[:1] == b"\x80":
        return "is a pickle, such as nanoGPT's meta.pkl, which could run code; for its characters, use the kind char"
    if head[:1] == b"{":
        return None
    if path.name == "merges.txt" or head.startswith(b"#version"):
        return "is the list of merges alone; give the folder that holds vocab.json and merges.txt"
    return None
