"""How many numbers a network has learned, by looking at it. `parameter_count` (config.py) computes it for a config."""

from torch import nn

from tinylm.model.lora import LoRALinear
from tinylm.model.quantized import QuantizedLinear


def count_parameters(model: nn.Module) -> int:
    """The numbers that a network has learned, tied ones once, each code of a layer in few bits as one number.

    LoRA adapters are not counted: `merge_lora` would add them to weights that are.
    """
    adapters: set[int] = set()
    codes = 0
    for module in model.modules():
        if isinstance(module, LoRALinear):
            adapters |= {id(weight) for weight in (*module.lora_a.values(), *module.lora_b.values())}
        elif isinstance(module, QuantizedLinear):
            codes += module.in_features * module.out_features
    return codes + sum(weight.numel() for weight in model.parameters() if id(weight) not in adapters)
