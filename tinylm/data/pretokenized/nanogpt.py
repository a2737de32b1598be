"""nanoGPT's folders: train.bin and val.bin, ids without a header, and perhaps meta.pkl with the characters."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tinylm.data.pretokenized.base import Shard, whole_ids
from tinylm.errors import DataError
from tinylm.files import open_input
from tinylm.tokenizer import CharTokenizer, Tokenizer

KIND = "nanoGPT"
META = "meta.pkl"
LARGEST_META = 64 << 20  # bytes
ID, ID_WIDE = np.dtype("<u2"), np.dtype("<u4")
SAMPLE = 1 << 12  # ids examined to detect a wrong width


def read_headerless(path: Path, dtype: np.dtype = ID) -> Shard:
    """A file of ids alone.

    Raises:
        DataError: if its size is not a multiple of an id's, or its ids are evidently wider.
    """
    size = path.stat().st_size
    shard = Shard(path, dtype, 0, whole_ids(path, size, dtype))
    sample = np.asarray(shard.map()[:SAMPLE])
    if dtype.itemsize == 2 and len(sample) >= 64 and not sample[1::2].any() and sample.any():
        raise DataError(
            f"data.corpus: {path}: every second id is 0: the ids are 32 bits wide, where nanoGPT has 16; convert it: "
            "numpy.fromfile(old, numpy.uint32).astype(numpy.uint16).tofile(new)"
        )
    return shard


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values: numbers, text, lists and dicts. Nothing is imported or called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _check_memo(data: bytes) -> None:
    """Refuses a pickle that numbers a value beyond its length: the table of numbers could exceed all memory."""
    for opcode, number, _ in pickletools.genops(data):
        if "PUT" in opcode.name and int(number or 0) > len(data):
            raise pickle.UnpicklingError("it is damaged")


def read_meta(path: Path) -> tuple[Tokenizer | None, int | None]:
    """The tokenizer and the size of the vocabulary that a meta.pkl records, None where it does not.

    Raises:
        DataError: if it holds anything but plain values, or no vocabulary.
    """
    if path.stat().st_size > LARGEST_META:
        raise DataError(f"{path}: is larger than any vocabulary; remove it, and name data.tokenizer")
    with open_input(path) as file:
        data = file.read()
    try:
        _check_memo(data)
        meta = _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged pickles raise errors of many types
        raise DataError(f"{path}: is not read ({error}); remove it, and name data.tokenizer") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: is not nanoGPT's; it does not hold a dict")
    size = meta.get("vocab_size")
    if size is not None and (type(size) is not int or size < 1):
        raise DataError(f"{path}: vocab_size must be a whole number above 0, got {size!r:.40}")
    if "stoi" not in meta and "itos" not in meta:
        if size is None:
            raise DataError(f"{path}: has neither vocab_size nor stoi and itos; remove it, and name data.tokenizer")
        return None, size
    return _characters(path, meta, size), size


def _characters(path: Path, meta: dict[str, Any], size: int | None) -> CharTokenizer:
    """The CharTokenizer of stoi and itos; longer pieces after the characters are its special tokens."""
    stoi, itos = meta.get("stoi"), meta.get("itos")
    pieces = stoi if isinstance(stoi, dict) else {}
    if stoi is None and isinstance(itos, list | dict):
        pieces = {piece: i for i, piece in (itos.items() if isinstance(itos, dict) else enumerate(itos))}
    if not all(isinstance(piece, str) and type(i) is int for piece, i in pieces.items()):
        raise DataError(f"{path}: stoi must give a number for each character")
    ordered = sorted(pieces, key=pieces.__getitem__)
    listed = dict(enumerate(itos)) if isinstance(itos, list) else itos
    if not ordered or [pieces[piece] for piece in ordered] != list(range(len(ordered))) or size not in (
        None, len(ordered),
    ):  # fmt: skip
        raise DataError(f"{path}: stoi does not number its pieces from 0 to vocab_size - 1; name data.tokenizer")
    if listed is not None and listed != dict(enumerate(ordered)):
        raise DataError(f"{path}: itos is not the inverse of stoi; name data.tokenizer")
    count = next((i for i, piece in enumerate(ordered) if len(piece) != 1), len(ordered))
    if any(len(piece) <= 1 for piece in ordered[count:]) or not count:
        raise DataError(f"{path}: its pieces are not characters; name the tokenizer by data.tokenizer")
    return CharTokenizer("".join(ordered[:count]), ordered[count:])


def meta_bytes(tokenizer: Tokenizer) -> bytes:
    """The meta.pkl of a tokenizer: stoi and itos for characters, for any other tokenizer the size alone."""
    meta: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    if isinstance(tokenizer, CharTokenizer):
        itos = dict(enumerate([*tokenizer.characters, *tokenizer.special_tokens]))
        meta |= {"itos": itos, "stoi": {piece: i for i, piece in itos.items()}}
    return pickle.dumps(meta)
