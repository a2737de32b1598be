"""The weights of a model as other programs store them: plain matrices, whatever the model's layers are."""

import torch
from torch import Tensor

from tinylm.errors import notice
from tinylm.known import check_known
from tinylm.model import TransformerLM
from tinylm.model.quantized import quantized_layers


def plain_weights(model: TransformerLM, purpose: str) -> dict[str, Tensor]:
    """The weights of a standard model on the CPU, by name, quantized ones dequantized.

    They get the type of the model's other weights, which is exact in float32. A notice says so.

    Raises:
        ConfigError: for a model that is not standard, or has adapters that are not merged; it begins with `purpose`.
    """
    check_known(model, purpose)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    dtype, layers = model.embedding.weight.dtype, dict(quantized_layers(model))
    for name, layer in layers.items():
        del weights[f"{name}.codes"], weights[f"{name}.scales"]
        with torch.no_grad():
            weights[f"{name}.weight"] = layer.weight.to("cpu", dtype)
    if layers:
        kind = str(dtype).removeprefix("torch.")
        notice(f"{purpose}: the {len(layers)} quantized layers are written as {kind}, with their dequantized values")
    return weights
