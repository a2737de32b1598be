"""Random numbers of the network: initial parameters and dropout masks; and the check of given parameters."""

import math

import numpy as np

from tinylm.reference.config import Config
from tinylm.reference.functions import Array, Arrays

Masks = dict[str, Array]


def initial_parameters(config: Config, seed: int, dtype: type | np.dtype) -> dict[str, Array]:
    """GPT-2's initialization: matrices from N(0, 0.02), norms one, biases zero.

    The 2 * layers matrices that write to the residual stream are from N(0, 0.02 / √(2 * layers)) instead, so that the
    variance of the stream does not grow with depth; with `zero_init_output` they start at zero. With muP the blocks'
    matrices are divided by √m, and the last norm by m.
    """
    random = np.random.default_rng(seed)
    residual = 0.0 if config.zero_init_output else 0.02 / math.sqrt(2 * config.num_layers)
    parameters = {}
    for name, shape in config.shapes().items():
        if len(shape) == 2:
            std = residual if name.endswith("output.weight") else 0.02
            std /= math.sqrt(config.width_ratio) if name.startswith("blocks.") else 1.0
            parameters[name] = (std * random.standard_normal(shape)).astype(dtype)
        else:
            one = 1.0 / config.width_ratio if name == f"{last_norm(config)}.weight" else 1.0
            parameters[name] = np.full(shape, one * name.endswith("norm.weight"), dtype)
    return parameters


def last_norm(config: Config) -> str:
    """The name of the norm that the head reads."""
    return f"blocks.{config.num_layers - 1}.feedforward_norm" if config.norm_placement == "post" else "final_norm"


def rate_factors(config: Config, optimizer: str) -> dict[str, float]:
    """Factors of the learning rate of each parameter under muP, so that one rate suits every width (Yang et al. 2022).

    A step of Adam moves every entry of a matrix by about lr, in a common direction: its outputs change by lr times the
    width, so the rate is divided by m. Muon's step has the norm lr √width, so its rate is divided by √m. The weights of
    the last norm are divided by m, and so is their rate.
    """
    m, last = config.width_ratio, f"{last_norm(config)}."
    matrix = 1 / math.sqrt(m) if optimizer == "muon" else 1 / m
    shapes = config.shapes().items()
    block = {name: matrix for name, shape in shapes if len(shape) == 2 and name.startswith("blocks.")}
    return block | {name: 1 / m for name, _ in shapes if name.startswith(last)}


def check_parameters(config: Config, parameters: Arrays) -> None:
    """Raises ValueError unless the parameters have the names and shapes that the config describes."""
    described = f"{config.num_layers:,} layers, a context of {config.max_seq_len:,}"
    if config.num_layers > len(parameters) or config.max_seq_len * config.head_dim > 1 << 27:  # in a stranger's file
        raise ValueError(f"the config has {described}, far more than the {len(parameters)} arrays of the file")
    shapes = config.shapes()
    if parameters.keys() != shapes.keys():
        raise ValueError(f"the parameters are not the config's: {sorted(parameters.keys() ^ shapes.keys())[:4]} differ")
    for name, shape in shapes.items():
        if parameters[name].shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {parameters[name].shape}")


def draw_masks(config: Config, shape: tuple[int, ...], random: np.random.Generator, dtype: np.dtype) -> Masks:
    """Dropout masks for a batch (B, T): 0 with probability p, otherwise 1/(1 - p), so that the mean is kept.

    Returns:
        `embedding`, `blocks.0.attention` and `blocks.0.feedforward` (B, T, D), `blocks.0.attention.weights`
        (B, H, T, T), and so on for every layer; an empty dictionary if p is 0
    """
    B, T = shape
    p = config.dropout

    def draw(*shape: int) -> Array:
        return (random.random(shape, np.float32) >= p) / dtype.type(1 - p)

    if p == 0:
        return {}
    masks = {"embedding": draw(B, T, config.d_model)}
    for layer in range(config.num_layers):
        masks[f"blocks.{layer}.attention.weights"] = draw(B, config.num_heads, T, T)
        masks[f"blocks.{layer}.attention"] = draw(B, T, config.d_model)
        masks[f"blocks.{layer}.feedforward"] = draw(B, T, config.d_model)
    return masks
