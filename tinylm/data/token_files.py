"""Files of token ids for other programs: an array (.npy), the bare ids (.bin), or JSON lines with the pieces."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinylm.data.token_array import CHUNK, Tokens, pieces_of
from tinylm.files import atomic_write
from tinylm.tokenizer import Tokenizer


def write_ids(path: Path, form: str, tokens: Tokens, tokenizer: Tokenizer, separator: int | None = None) -> None:
    """Writes token ids to a file, atomically. Memory does not grow with their number.

    Args:
        path: the file
        form: `npy`; `bin`, the ids in their own type, as nanoGPT has them; or `jsonl`, one document a line, with `ids`
            and `pieces`, the text of each id
        tokens: the ids, (tokens,)
        tokenizer: has the pieces
        separator: the id that ends each document; None if all tokens are one document
    """
    with atomic_write(path) as file:
        if form == "jsonl":
            names = [piece.decode("utf-8", "backslashreplace") for piece in tokenizer.token_bytes]
            for begin, end in _documents(tokens, separator):
                _write_record(file, tokens, begin, end, names)
            return
        if form == "npy":
            header = {"descr": tokens.dtype.str, "fortran_order": False, "shape": (len(tokens),)}
            np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces_of(tokens):
            file.write(np.ascontiguousarray(piece).data)


def _documents(tokens: Tokens, separator: int | None) -> Iterator[tuple[int, int]]:
    """The ranges of the documents, without their separators."""
    first = 0  # of the document
    for begin in range(0, len(tokens), CHUNK) if separator is not None else ():
        chunk = np.asarray(tokens[begin : begin + CHUNK])
        for end in (np.flatnonzero(chunk == separator) + begin).tolist():
            yield first, end
            first = end + 1
    if first < len(tokens):
        yield first, len(tokens)


def _write_record(file: BinaryIO, tokens: Tokens, begin: int, end: int, names: list[str]) -> None:
    """Writes one line, in chunks."""
    for key in ("ids", "pieces"):
        file.write(b'{"ids": [' if key == "ids" else b'], "pieces": [')
        for start in range(begin, end, CHUNK):
            ids = np.asarray(tokens[start : min(start + CHUNK, end)]).tolist()
            values = ids if key == "ids" else [names[token] for token in ids]
            comma = "" if start == begin else ", "
            file.write((comma + json.dumps(values, ensure_ascii=False)[1:-1]).encode("utf-8", "backslashreplace"))
    file.write(b"]}\n")
