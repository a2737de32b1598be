"""The parameters of a network: random ones to begin with, and whether given ones are those of a config."""

import math

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array


def initial_parameters(config: Config, seed: int, dtype: type | np.dtype) -> dict[str, Array]:
    """GPT-2's: N(0, 0.02) for all matrices, N(0, 0.02 / √(2 layers)) for the 2 * layers that write to the stream.

    So the stream's variance does not grow with depth. With `zero_init_output` those start at zero instead. Norms start
    at one, biases at zero.
    """
    random = np.random.default_rng(seed)
    residual = 0.0 if config.zero_init_output else 0.02 / math.sqrt(2 * config.num_layers)
    parameters = {}
    for name, shape in config.shapes().items():
        if len(shape) == 2:
            std = residual if name.endswith("output.weight") else 0.02
            parameters[name] = (std * random.standard_normal(shape)).astype(dtype)
        else:
            parameters[name] = np.full(shape, float(name.endswith("norm.weight")), dtype)
    return parameters


def check_parameters(config: Config, parameters: dict[str, Array]) -> None:
    """Raises ValueError unless the parameters are those of the config, by name and shape."""
    shapes = config.shapes()
    if parameters.keys() != shapes.keys():
        raise ValueError(f"the parameters are not the config's: {sorted(parameters.keys() ^ shapes.keys())[:4]} differ")
    for name, shape in shapes.items():
        if parameters[name].shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {parameters[name].shape}")
