"""Byte-level tokenization: one id per byte of UTF-8. It needs no training and encodes any text."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinylm.files import file_size, read_range
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.blocks import utf8


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes; special tokens follow."""

    kind = "byte"

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        super().__init__([bytes([value]) for value in range(256)], special_tokens)

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]] = (), *, special_tokens: Sequence[str] = ()) -> Self:
        """Returns the tokenizer; the texts are not read."""
        return cls(special_tokens)

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """One id per byte of the text's UTF-8, int64 (n,).

        Raises:
            DataError: for a lone surrogate.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def _encode_part(self, text: str, start: int = 0) -> np.ndarray:
        """The bytes of a text; invalid UTF-8 that `surrogateescape` kept as surrogates becomes its bytes again."""
        return np.frombuffer(utf8(text, "surrogateescape"), dtype=np.uint8).astype(np.int64)

    def encode_file(self, path: str | Path, processes: int | None = 1) -> np.ndarray:
        """The bytes of any file, `dtype` (n,).

        Raises:
            MissingInputError: if the file does not exist.
        """
        return np.frombuffer(read_range(Path(path), 0, file_size(Path(path))), dtype=np.uint8).astype(self.dtype)

    def options(self) -> dict[str, Any]:
        """Special tokens."""
        return {"special_tokens": list(self.special_tokens)}
