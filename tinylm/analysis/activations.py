"""Activation statistics: mean, standard deviation, outliers and dead units at each place in a network.

The places are the residual stream (after the embedding and after each block), the output of each sublayer, and the
units of the feed-forward layers, which are the input of their last projection.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of, check_seen
from tinylm.checks import require
from tinylm.evaluation.log_probs import double, evaluating
from tinylm.model import TransformerLM

DEAD = 0.01  # a unit is dead if it never exceeds this fraction of its layer's root mean square
FAR = 6.0  # a value is an outlier if it is more than this many standard deviations from the mean
PLACES = ("embedding", "attention", "units", "feedforward", "stream")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Statistics of one place, over all tokens and units."""

    place: str  # one of `PLACES`: attention and feedforward are sublayer outputs, stream is the output of the block
    layer: int  # the block, from 0; -1 for the embedding
    mean: float
    std: float  # standard deviation
    dead: float  # share of the units that are dead
    outliers: float  # share of the values that are outliers
    largest: float  # the greatest distance from the mean, in standard deviations


@contextmanager
def watching_activations(
    model: TransformerLM, see: Callable[[str, int, Tensor], None], places: Sequence[str] = PLACES
) -> Iterator[None]:
    """Passes activations to `see(place, block, values)`, values (B, T, units), while the network computes.

    It is used in a `with` block. A network that lacks one of the places, or did not compute it, is refused.
    """
    watched = [each for each in _modules(model) if each[0] in places]
    seen: list[str] = []

    def note(place: str, layer: int, module: nn.Module, inputs: tuple[Tensor], output: Tensor | None = None) -> None:
        seen.append(_name(place, layer))
        see(place, layer, inputs[0] if output is None else output)

    with ExitStack() as hooks:
        for place, layer, module in watched:
            known = isinstance(module, nn.Module)
            require(known, f"blocks.{layer}.feedforward has no layer `output`, so its units are unknown")
            register = module.register_forward_pre_hook if place == "units" else module.register_forward_hook
            hooks.enter_context(register(partial(note, place, layer)))
        yield
        check_seen(seen, [_name(place, layer) for place, layer, _ in watched])


def _modules(model: TransformerLM) -> Iterator[tuple[str, int, Any]]:
    """Each place and block, with the module that computes it; for units, the module that reads them."""
    yield "embedding", -1, model.dropout
    for layer, block in enumerate(blocks_of(model)):
        yield "attention", layer, block.attention
        yield "units", layer, getattr(block.feedforward, "output", None)
        yield "feedforward", layer, block.feedforward
        yield "stream", layer, block


def _name(place: str, layer: int) -> str:
    return place if layer < 0 else f"blocks.{layer}.{place}"


def activation_statistics(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> list[Activations]:
    """The statistics of every place, from the embedding to the last block."""
    found: list[Activations] = []
    with evaluating(model), watching_activations(model, lambda *seen: found.append(describe(*seen))):
        model(ids, documents=documents)
    return found


def describe(place: str, layer: int, values: Tensor) -> Activations:
    """The statistics of activations, (B, T, units)."""
    values = double(values.detach()).flatten(0, 1)
    mean, std = values.mean(), values.std(correction=0)
    rms = values.square().mean().sqrt()
    distance = (values - mean).abs()
    return Activations(
        place=place,
        layer=layer,
        mean=mean.item(),
        std=std.item(),
        dead=(values.abs().amax(dim=0) <= DEAD * rms).float().mean().item(),
        outliers=(distance > FAR * std).float().mean().item(),
        largest=(distance.max() / std).item() if std > 0 else 0.0,
    )
