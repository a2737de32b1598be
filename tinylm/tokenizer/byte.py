"""One id per byte of UTF-8: 256 ids, no training, and nothing that it cannot read."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from tinylm.tokenizer.base import Tokenizer, utf8


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes; special tokens follow."""

    kind = "byte"

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        super().__init__([bytes([value]) for value in range(256)], special_tokens)

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]] = (), *, special_tokens: Sequence[str] = ()) -> Self:
        """There is nothing to learn: the texts are not read."""
        return cls(special_tokens)

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """One id per byte of the text's UTF-8, int64 (n,).

        Raises:
            DataError: for a lone surrogate.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[np.ndarray]:
        """As `encode_ordinary`; bytes that were no UTF-8 in their file, and which Python's `surrogateescape` carried
        through the text, become themselves again."""
        for chunk in chunks:
            data = utf8(chunk, "surrogateescape")
            yield np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def options(self) -> dict[str, Any]:
        """Special tokens."""
        return {"special_tokens": list(self.special_tokens)}
