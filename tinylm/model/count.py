"""Counts the parameters of a model. `parameter_count` (size.py) computes their number from a config alone."""

from torch import nn

from tinylm.model.lora import A, B
from tinylm.model.quantized import quantized_layers


def count_parameters(model: nn.Module) -> int:
    """Number of parameters: tied ones count once, each weight of a quantized layer counts as one.

    LoRA adapters are left out, since `merge_lora` adds them to weights that are counted.
    """
    weights = sum(weight.numel() for name, weight in model.named_parameters() if A not in name and B not in name)
    return weights + sum(layer.in_features * layer.out_features for _, layer in quantized_layers(model))
