"""Numbers of parameters and operations, computed from a config.

With plug-ins, whose size the config does not say, a model without values is built and counted.
"""

from functools import lru_cache
from typing import Any

from tinylm.checks import require
from tinylm.model.config import ModelConfig
from tinylm.model.count import count_parameters
from tinylm.model.empty import without_weights
from tinylm.model.transformer import TransformerLM

FAR_MORE = 100  # a smaller gap means missing weights, which are named later


@lru_cache(maxsize=8)
def empty_model(config: ModelConfig) -> TransformerLM:
    """A model of the config without values, not to be changed."""
    with without_weights():
        return TransformerLM(config)


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of a `TransformerLM`; tied weights count once."""
    if config.parts:
        return count_parameters(empty_model(config))
    width, heads, kv = config.d_model, config.num_heads * config.head_dim, config.kv_heads * config.head_dim

    def linear(inputs: int, outputs: int, bias: bool = config.bias) -> int:
        return inputs * outputs + bias * outputs

    attention = linear(width, heads + 2 * kv, config.biased_qkv) + linear(heads, width)
    gates = 2 if config.activation == "swiglu" else 1
    feedforward = gates * linear(width, config.ff_width) + linear(config.ff_width, width)
    total = config.num_layers * (attention + feedforward) + norm_parameters(config)
    total += config.vocab_size * (width * (1 if config.tie_embeddings else 2) + config.head_bias)
    return total + (config.max_seq_len * width if config.positional_encoding == "learned" else 0)


def norm_parameters(config: ModelConfig) -> int:
    """Parameters of all norms."""
    norm = config.d_model * (2 if config.norm == "layernorm" and config.bias else 1)
    block = norm if config.residual == "parallel_one_norm" else 2 * norm
    if config.qk_norm:
        heads = 2 if config.qk_norm_width == "head" else config.num_heads + config.kv_heads
        block += heads * config.head_dim
    return config.num_layers * block + (0 if config.norm_placement == "post" else norm)


def check_size(config: ModelConfig, weights: int, tensors: int) -> None:
    """Refuses a config that describes far more weights than its file holds, before a model of that size is built.

    Args:
        config: the config of a stored model
        weights: stored numbers
        tensors: stored tensors

    Raises:
        ConfigError: if the model has more layers or parameters.
    """
    described, file = f"the config has {config.num_layers:,} layers", f"{tensors:,} tensors of {weights:,} numbers"
    few = config.num_layers <= tensors
    require(few or not config.parts, f"{described}, the file {file}")  # plug-ins must be built to be counted
    parameters = parameter_count(config)
    fits = few and parameters <= FAR_MORE * weights
    require(fits, f"{described} and {parameters:,} parameters, the file {file}")


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of training on one token at full context, forward and backward.

    The convention of PaLM (Chowdhery et al. 2022, appendix B) and of most published MFU figures: six operations per
    parameter, lookup tables excluded, plus 12 H E * (visible tokens) per layer for the two products of attention, as if
    every query saw the whole context or window. Softmax and recomputation are left out. A plug-in may say how many of
    its parameters a token uses, and what its attention costs (plugin.py).
    """
    parameters = parameter_count(config) - (0 if config.tie_embeddings else config.vocab_size * config.d_model)
    parameters -= config.max_seq_len * config.d_model if config.positional_encoding == "learned" else 0
    context = config.max_seq_len
    visible = [min(context, config.window(kind) or context) for kind in config.layer_kinds]
    scores = [4 * config.num_heads * config.head_dim * keys for keys in visible]
    if config.parts:
        model = empty_model(config)
        sparse: list[Any] = [module for module in model.modules() if hasattr(module, "active_parameters")]
        parameters -= sum(count_parameters(module) - module.active_parameters for module in sparse)
        for layer, keys in enumerate(visible):
            own = getattr(model.get_submodule(f"blocks.{layer}.attention"), "score_flops", None)
            scores[layer] = scores[layer] if own is None else own(keys)
    return 6 * parameters + 3 * sum(scores)
