"""A LoRA layer: a frozen matrix and a small trainable update of it (chapter 9)."""

from torch import Tensor, nn


class LoRALinear(nn.Module):
    """y = linear(x) + (alpha / rank) x Aᵀ Bᵀ, where only A and B are trained.

    Attributes:
        linear: the given layer, whose parameters are frozen (they have requires_grad False)
        a: A, a parameter, (rank, inputs), random at the start
        b: B, a parameter, (outputs, rank), zero at the start
        scale: alpha / rank
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        """Freezes the layer and makes A and B.

        Example: for a layer of 6 inputs and 4 outputs and the rank 2, A is (2, 6) and B is (4, 2): 20 trainable
        parameters beside 24 frozen ones.
        """
        super().__init__()
        self.linear = linear
        raise NotImplementedError  # freeze the layer; make self.a and self.b (nn.Parameter) and self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)

        Example: with linear(x) = 0, A = (1, 1), B = (3), rank 1 and alpha 2, x = (10, 1) becomes 2 · 3 · 11 = 66.
        """
        raise NotImplementedError

    def merged(self) -> nn.Linear:
        """One linear layer that computes the same: its weight is W + scale B A, and its bias that of the given layer.

        It is a new layer; the given one is not changed.
        """
        raise NotImplementedError
