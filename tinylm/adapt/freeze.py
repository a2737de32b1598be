"""Freezing: which parameters stay fixed during finetuning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tinylm.checks import check_types, require
from tinylm.errors import ConfigError, did_you_mean
from tinylm.model import TransformerLM


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """Parameters to freeze during finetuning. All parameters named by any field are frozen."""

    layers: tuple[int, ...] = ()
    """Blocks to freeze, numbered from 0; -1 is the last."""
    patterns: tuple[str, ...] = ()
    """Names of parameters to freeze, as blocks.*.attention.*"""
    all_but_last: int | None = None
    """Freeze everything except the last N blocks, the final norm and an untied head. Default: off"""

    def __post_init__(self) -> None:
        check_types(self)
        if self.all_but_last is not None:
            require(self.all_but_last >= 0, f"freeze.all_but_last must not be negative, got {self.all_but_last}")


def freeze(model: TransformerLM, config: FreezeConfig) -> list[str]:
    """Freezes parameters: they get no gradient.

    Returns:
        the names of the frozen parameters

    Raises:
        ConfigError: for a block or pattern that the model does not have, if no parameter is left to train, or if
            `all_but_last` finds a parameter outside the standard model.
    """
    patterns = [f"blocks.{number}.*" for number in _block_numbers(model, config)]
    names = [name for name, _ in model.named_parameters()]  # a tied head is the embedding
    for pattern in config.patterns:
        matching(pattern, names, f"freeze.patterns: no parameter matches {pattern}")
    patterns += config.patterns
    if config.all_but_last is not None:
        patterns += ["embedding.*", "positions.*"]
        for name in names:
            known = name.startswith(("embedding.", "positions.", "blocks.", "final_norm.", "head."))
            require(known, f"freeze.all_but_last does not know whether to freeze {name}; use freeze.patterns instead")
    frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if len(frozen) == len(names):
        raise ConfigError("freeze: no parameter is left to train; freeze fewer")
    freeze_parameters(model, frozen)
    return frozen


def matching(pattern: str, names: Sequence[str], problem: str, groups: Iterable[str] = ()) -> list[str]:
    """The names that match a pattern; if there are none, raises `problem` with the nearest of names and `groups`."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        candidates = [*groups, *names]
        hint = did_you_mean(pattern, candidates) or f"; known are {', '.join(candidates[:7])}, ..."
        raise ConfigError(problem + hint)
    return found


def freeze_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Freezes the parameters of these names."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def _block_numbers(model: TransformerLM, config: FreezeConfig) -> list[int]:
    count, last = len(model.blocks), config.all_but_last
    for number in config.layers:
        require(-count <= number < count, f"freeze.layers: the model has blocks 0 to {count - 1}, got {number}")
    numbers = {number % count for number in config.layers}
    if last is not None:
        require(last <= count, f"freeze.all_but_last: the model has {count} blocks, got {last}")
        numbers |= set(range(count - last))
    return sorted(numbers)


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters; tied ones are counted once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)
