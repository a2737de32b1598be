"""Looking into a network while it computes, and leaving it as it was."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.hooks import RemovableHandle

from tinylm.errors import ConfigError
from tinylm.model import Block, TransformerLM


def blocks_of(model: TransformerLM) -> list[Block]:
    """The blocks, by their type.

    Raises:
        ConfigError: if one is something else.
    """
    blocks = []
    for number, block in enumerate(model.blocks):
        if not isinstance(block, Block):
            raise ConfigError(
                f"blocks.{number} is a {type(block).__name__}, whose inside is not known, and not a Block"
            )
        blocks.append(block)
    return blocks


def check_seen(places: Iterable[Any], expected: Iterable[Any]) -> None:
    """Checks that each place of a network was seen, and as often as the others.

    Raises:
        ConfigError: naming one that was not.
    """
    counts = Counter(places)
    for place in expected:
        if not counts[place] or counts[place] != max(counts.values()):
            raise ConfigError(
                f"{place} was not computed where a network of tinylm computes it, and cannot be looked at"
            )


@contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Hooks that are there for a while."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
