"""Looking inside: what passes through a network, forward and backward, to be compared with another's."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tinylm.reference.functions import Array


@dataclass
class Trace:
    """What passed through a network: each part's result, and the loss's gradient with respect to it, by name."""

    activations: dict[str, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)


def watched(name: str, result: tuple[Array, Callable], trace: Trace | None) -> tuple[Array, Callable]:
    """The result of a part, with the trace taking down what passes."""
    if trace is None:
        return result
    y, back = result
    trace.activations[name] = y.copy()

    def backward(dy: Array):
        trace.gradients[name] = dy.copy()
        return back(dy)

    return y, backward
