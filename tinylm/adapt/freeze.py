"""Freezing: which weights of a finished model rest while the others learn on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tinylm.checks import check_types, require
from tinylm.errors import ConfigError, did_you_mean
from tinylm.model import TransformerLM


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """Which parameters are frozen during finetuning: all that any of these fields names."""

    layers: tuple[int, ...] = ()
    """Blocks by number, from 0; -1 is the last."""
    patterns: tuple[str, ...] = ()
    """Parameters by name, where * stands for anything: blocks.*.attention.*"""
    all_but_last: int | None = None
    """Everything but the last N blocks, the final norm and an untied head."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.all_but_last is not None:
            require(self.all_but_last >= 0, f"freeze.all_but_last must not be negative, got {self.all_but_last}")


def freeze(model: TransformerLM, config: FreezeConfig) -> list[str]:
    """Lets weights rest: they get no gradient.

    Returns:
        their names

    Raises:
        ConfigError: for a block or a pattern that the model does not have, if nothing is left to learn, or for
            `all_but_last` and a weight of which nobody knows whether it stands before those blocks.
    """
    patterns = [f"blocks.{number}.*" for number in _block_numbers(model, config)]
    names = [name for name, _ in model.named_parameters()]  # a tied head is the embedding
    for pattern in config.patterns:
        matching(pattern, names, f"freeze.patterns: nothing is named {pattern}")
    patterns += config.patterns
    if config.all_but_last is not None:
        patterns += ["embedding.*", "positions.*"]
        _check_places(names)
    frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if len(frozen) == len(names):
        raise ConfigError("freeze: nothing is left to learn; freeze less")
    rest(model, frozen)
    return frozen


def _check_places(names: Iterable[str]) -> None:
    places = ("embedding.", "positions.", "blocks.", "final_norm.", "head.")
    for name in names:
        known = name.startswith(places)
        require(known, f"freeze.all_but_last: is {name} before the last blocks? Say what is frozen by freeze.patterns")


def matching(pattern: str, names: Sequence[str], problem: str, groups: Iterable[str] = ()) -> list[str]:
    """Those of some names that a pattern with `*` stands for.

    Raises:
        ConfigError: if there are none: the problem, and what may have been meant, `groups` of names among it.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        hint = did_you_mean(pattern, [*groups, *names])
        raise ConfigError(problem + (hint or f"; names are such as {', '.join([*groups, *names][:7])}"))
    return found


def rest(model: nn.Module, names: list[str]) -> None:
    """Lets the parameters of these names rest."""
    wanted = set(names)
    for name, parameter in model.named_parameters():
        if name in wanted:
            parameter.requires_grad_(False)


def _block_numbers(model: TransformerLM, config: FreezeConfig) -> list[int]:
    count = len(model.blocks)
    for number in config.layers:
        require(-count <= number < count, f"freeze.layers: the model has blocks 0 to {count - 1}, got {number}")
    numbers = {number % count for number in config.layers}
    if config.all_but_last is not None:
        last = config.all_but_last
        require(last <= count, f"freeze.all_but_last: the model has {count} blocks, got {last}")
        numbers |= set(range(count - last))
    return sorted(numbers)


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """How many parameters learn, and how many there are, tied ones counted once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
