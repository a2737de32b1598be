"""Checks for code that observes a network while it computes."""

from collections import Counter
from collections.abc import Iterable

from tinylm.checks import require
from tinylm.model import Block, TransformerLM


def blocks_of(model: TransformerLM) -> list[Block]:
    """The blocks of a network, all of which must be a `Block`."""
    for number, block in enumerate(model.blocks):
        name = f"blocks.{number} is a {type(block).__name__}"
        require(isinstance(block, Block), f"{name}, whose inside is not known, and not a Block")
    return list(model.blocks)  # pyright: ignore[reportReturnType]


def check_seen(seen: Iterable[str], expected: Iterable[str]) -> None:
    """Checks that each expected part of a network was observed, all equally often."""
    counts = Counter(seen)
    for part in expected:
        known = counts[part] > 0 and counts[part] == max(counts.values())
        require(known, f"{part} was not computed where a network of tinylm computes it, and cannot be analyzed")
