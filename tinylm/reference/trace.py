"""Tracing: the result of every part and the gradient with respect to it, for comparison with another network."""

from collections.abc import Callable

from tinylm.reference.functions import Array
from tinylm.reference.transformer import NumpyTransformerLM


class TracedTransformerLM(NumpyTransformerLM):
    """A network that records what passes through its parts.

    Attributes:
        activations: each part's result, by the part's name
        gradients: the gradient of the loss with respect to it
    """

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.activations: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}

    def part(self, function: Callable, x: Array, name: str, *arguments: object) -> tuple[Array, Callable]:
        """Computes and records a part."""
        return self._record(name, super().part(function, x, name, *arguments))

    def residual(self, function: Callable, x: Array, name: str, *arguments) -> tuple[Array, Callable]:
        """Records the result of a whole block, `blocks.0`, after its last sublayer."""
        result = super().residual(function, x, name, *arguments)
        block = name.removesuffix(".feedforward")
        return result if block == name else self._record(block, result)

    def parallel(self, x: Array, name: str, *arguments) -> tuple[Array, Callable]:
        """Computes and records a whole block."""
        return self._record(name, super().parallel(x, name, *arguments))

    def _record(self, name: str, result: tuple[Array, Callable]) -> tuple[Array, Callable]:
        y, back = result
        self.activations[name] = y.copy()

        def backward(dy: Array):
            self.gradients[name] = dy.copy()
            return back(dy)

        return y, backward
