"""LoRALinear: a linear layer with a trainable low-rank update of its frozen weight (Hu et al. 2021).

    y = W x + b + (alpha / rank) B A x        A (rank, inputs), B (outputs, rank)

A is initialized at random and B at zero, so a new adapter changes nothing. A layer can have
several named adapters; the updates of the active ones are added. `tinylm.adapt` chooses the layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

A, B = ".lora_a.", ".lora_b."  # inside names of a state dict: <layer>.lora_a.<adapter>


class LoRALinear(nn.Linear):
    """A linear layer with adapters. It shares weight and bias, and their names, with the layer that it replaces.

    Attributes:
        scales: alpha / rank of each adapter
        active: names of the adapters in use
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate new weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        self.scales: dict[str, float] = {}
        self.dropouts: dict[str, float] = {}
        self.active: tuple[str, ...] = ()
        self._before: Tensor | None = None  # the weight without the adapters that are merged
        self.train(linear.training)

    @property
    def merged(self) -> bool:
        """Whether the active adapters are merged into the weight."""
        return self._before is not None

    def add(self, name: str, rank: int, alpha: float, dropout: float) -> None:
        """Adds an adapter, which changes nothing yet, and activates it."""
        a = self.weight.new_empty(rank, self.in_features)
        nn.init.uniform_(a, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
        self.lora_a[name], self.lora_b[name] = nn.Parameter(a), nn.Parameter(a.new_zeros(self.out_features, rank))
        self.scales[name], self.dropouts[name] = alpha / rank, dropout
        self.active = (*self.active, name)

    def delta(self, name: str) -> Tensor:
        """The update of the weight by one adapter, (outputs, inputs)."""
        return self.scales[name] * (self.lora_b[name] @ self.lora_a[name])

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        y = F.linear(input, self.weight, self.bias)
        for name in () if self.merged else self.active:
            low = F.linear(F.dropout(input, self.dropouts[name], self.training), self.lora_a[name])  # (..., rank)
            y = y + self.scales[name] * F.linear(low, self.lora_b[name])
        return y

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the active adapters to the weight, so that they cost nothing. Repeating it does nothing."""
        if self._before is None:
            self._before = self.weight.clone()
            for name in self.active:
                self.weight += self.delta(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the weight bit for bit."""
        if self._before is not None:
            self.weight.copy_(self._before)
            self._before = None

    def plain(self) -> nn.Linear:
        """An `nn.Linear` with the current weight."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


def merged_weights(weights: dict[str, Tensor], scales: dict[str, float]) -> dict[str, Tensor]:
    """Merges the adapters of a state dict, which becomes that of a model without adapters.

    Args:
        weights: state dict of a model with `LoRALinear` layers
        scales: alpha / rank of each adapter to merge; others are dropped
    """
    merged = {name: weight for name, weight in weights.items() if A not in name and B not in name}
    for name, a in weights.items():
        layer, _, adapter = name.rpartition(A)
        if layer and adapter in scales:
            delta = scales[adapter] * (weights[f"{layer}{B}{adapter}"] @ a)
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + delta
    return merged
