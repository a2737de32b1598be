"""The base class of tokenizers that learn pieces from the counted words of a text."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Self

from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.blocks import Block, blocks, file_blocks


class LearnedTokenizer(Tokenizer):
    """A tokenizer whose training counts the words of a text, block by block, in any number of processes."""

    has_size = True

    @classmethod
    @abstractmethod
    def train_from_blocks(cls, found: Iterable[Block], **options: Any) -> Self:
        """Learns pieces from blocks of a text. Each subclass documents its own options."""

    @classmethod
    @abstractmethod
    def training_cut(cls, pattern: str) -> Callable[[str], int]:
        """The function `safe_cut` for a pattern that splits text into words."""

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], *, pattern: str = "gpt2", **options: Any) -> Self:
        """Learns from texts that arrive in chunks. Options and errors as in `train_from_blocks`."""
        return cls.train_from_blocks(blocks(streams, cls.training_cut(pattern)), pattern=pattern, **options)

    @classmethod
    def train(
        cls, paths: Iterable[str | Path], *, pattern: str = "gpt2", processes: int | None = None, **options: Any
    ) -> Self:
        """Learns from UTF-8 files, by default with one process per core. Options as in `train_from_blocks`."""
        safe_cut = cls.training_cut(pattern)
        found = chain.from_iterable(file_blocks(Path(path), safe_cut) for path in paths)
        return cls.train_from_blocks(found, pattern=pattern, processes=processes, **options)
