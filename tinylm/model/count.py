"""Counts the parameters of a model. `parameter_count` (config.py) computes their number from a config alone."""

from torch import nn

from tinylm.model.lora import LoRALinear
from tinylm.model.quantized import QuantizedLinear


def count_parameters(model: nn.Module) -> int:
    """Number of parameters: tied ones count once, each weight of a quantized layer counts as one.

    LoRA adapters are left out, since `merge_lora` would add them to weights that are counted.
    """
    adapters: set[int] = set()
    codes = 0
    for module in model.modules():
        if isinstance(module, LoRALinear):
            adapters |= {id(weight) for weight in (*module.lora_a.values(), *module.lora_b.values())}
        elif isinstance(module, QuantizedLinear):
            codes += module.in_features * module.out_features
    return codes + sum(weight.numel() for weight in model.parameters() if id(weight) not in adapters)
