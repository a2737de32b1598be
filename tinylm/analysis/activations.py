"""What flows through a network: how large, how spread out, which units never do anything, which values stand out.

Looked at are the residual stream (after the embedding and after each block), what each sublayer adds to it, and the
units of the feed-forward layers: what their last projection reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of, check_seen, hooked
from tinylm.checks import require
from tinylm.evaluation.log_probs import evaluating
from tinylm.model import TransformerLM

DEAD = 0.01
"""A unit is dead that on no token comes beyond so much of its layer's root mean square; a ReLU that never fires is."""
FAR = 6.0
"""A value is an outlier that is further from the mean than so many standard deviations."""
PLACES = ("embedding", "attention", "units", "feedforward", "stream")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The numbers at one place, over all tokens and units."""

    place: str
    """embedding, or of a block: attention, feedforward (what they add), units, stream (after the block)."""
    layer: int
    """The block, from 0; -1: before all blocks."""
    mean: float
    std: float
    """Standard deviation."""
    dead: float
    """Share of the units that are dead."""
    outliers: float
    """Share of the values that are outliers."""
    largest: float
    """The greatest distance from the mean, in standard deviations."""


@contextmanager
def watching_activations(
    model: TransformerLM, see: Callable[[str, int, Tensor], None], places: Sequence[str] = PLACES
) -> Iterator[None]:
    """Shows what flows through a network as it computes.

    Args:
        model: the network
        see: gets the place, the block, and the numbers, (B, T, units)
        places: which places to look at

    Raises:
        ConfigError: for a network that has no such place, or did not come by one.
    """
    watched = [each for each in _watched(model) if each[0] in places]
    for _, layer, module in watched:
        found = isinstance(module, nn.Module)
        require(found, f"blocks.{layer}.feedforward has no layer `output`, so its units are unknown")
    seen: list[str] = []

    def note(place: str, layer: int, values: Tensor) -> None:
        seen.append(_name(place, layer))
        see(place, layer, values)

    def after(place: str, layer: int):
        return lambda module, inputs, output: note(place, layer, output)

    def before(place: str, layer: int):
        return lambda module, inputs: note(place, layer, inputs[0])

    handles = []
    for place, layer, module in watched:
        if place == "units":
            handles.append(module.register_forward_pre_hook(before(place, layer)))
        else:
            handles.append(module.register_forward_hook(after(place, layer)))
    with hooked(handles):
        yield
        check_seen(seen, [_name(place, layer) for place, layer, _ in watched])


def _watched(model: TransformerLM) -> Iterator[tuple[str, int, Any]]:
    """Places, blocks and the modules that give the numbers; of units the module that takes them."""
    yield "embedding", -1, model.dropout
    for layer, block in enumerate(blocks_of(model)):
        yield "attention", layer, block.attention
        yield "units", layer, getattr(block.feedforward, "output", None)
        yield "feedforward", layer, block.feedforward
        yield "stream", layer, block


def _name(place: str, layer: int) -> str:
    return place if layer < 0 else f"blocks.{layer}.{place}"


def activation_statistics(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> list[Activations]:
    """The figures of every place, in the order in which a token comes by.

    Args:
        model: the network
        ids: token ids, (B, T)
        documents: as `TransformerLM.forward` takes them
    """
    found: list[Activations] = []
    with evaluating(model), watching_activations(model, lambda *seen: found.append(describe(*seen))):
        model(ids, documents=documents)
    return found


def describe(place: str, layer: int, values: Tensor) -> Activations:
    """The figures of some numbers, (B, T, units)."""
    values = values.detach().double().flatten(0, 1) if values.device.type != "mps" else values.float().flatten(0, 1)
    mean, std = values.mean(), values.std(correction=0)
    size = values.square().mean().sqrt()
    distance = (values - mean).abs()
    return Activations(
        place=place,
        layer=layer,
        mean=mean.item(),
        std=std.item(),
        dead=(values.abs().amax(dim=0) <= DEAD * size).double().mean().item(),
        outliers=(distance > FAR * std).double().mean().item(),
        largest=(distance.max() / std).item() if std > 0 else 0.0,
    )
