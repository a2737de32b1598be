"""What flows through a network: how large, how spread out, which units never do anything, which values stand out.

Looked at are the residual stream (after the embedding and after each block), what each sublayer adds to it, and the
units of the feed-forward layers: what their last projection reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of, evaluating, hooked
from tinylm.model import TransformerLM

DEAD = 0.01
"""A unit is dead that on no token comes beyond so much of its layer's root mean square; a ReLU that never fires is."""
FAR = 6.0
"""A value is an outlier that is further from the mean than so many standard deviations."""


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
def watching_activations(model: TransformerLM, see: Callable[[str, int, Tensor], None]) -> Iterator[None]:
    """Shows what flows through a network as it computes.

    Args:
        model: the network
        see: gets the place, the block, and the numbers, (B, T, units)
    """

    def after(module: nn.Module, place: str, layer: int):
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            see(place, layer, output)

        return module.register_forward_hook(look)

    def before(module: nn.Module, place: str, layer: int):
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(place, layer, inputs[0])

        return module.register_forward_pre_hook(look)

    handles = [after(model.dropout, "embedding", -1)]
    for layer, block in enumerate(blocks_of(model)):
        handles.append(after(block.attention, "attention", layer))
        handles.append(before(block.feedforward.output, "units", layer))
        handles.append(after(block.feedforward, "feedforward", layer))
        handles.append(after(block, "stream", layer))
    with hooked(handles):
        yield


def activation_statistics(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> list[Activations]:
    """The figures of every place, in the order in which a token comes by.

    Args:
        model: the network
        ids: token ids, (B, T)
        documents: as `TransformerLM.forward` takes them
    """
    found: list[Activations] = []
    with evaluating(model), watching_activations(model, lambda *seen: found.append(describe(*seen))):
        model.hidden(ids, documents=documents)
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
