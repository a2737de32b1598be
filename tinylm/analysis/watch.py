"""Checks for code that observes a network while it computes."""

from collections import Counter
from collections.abc import Iterable

from tinylm.checks import require
from tinylm.model import Block, TransformerLM


def blocks_of(model: TransformerLM) -> list[Block]:
    """The blocks of a network, each of which must be a `Block`."""
    for number, block in enumerate(model.blocks):
        name = f"blocks.{number} is a {type(block).__name__}"
        require(isinstance(block, Block), f"{name} and not a Block, so its parts are unknown")
    return list(model.blocks)  # pyright: ignore[reportReturnType]


def check_seen(seen: Iterable[str], expected: Iterable[str]) -> None:
    """Checks that each expected part of a network was observed, all equally often."""
    counts = Counter(seen)
    for part in expected:
        known = counts[part] > 0 and counts[part] == max(counts.values())
        require(known, f"{part} was not computed where tinylm's networks compute it, so it cannot be analyzed")
