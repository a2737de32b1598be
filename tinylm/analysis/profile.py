"""The cost of a model, part by part: parameters, floating-point operations, memory and arithmetic intensity.

Operations are those of matrix products, two per multiplication, as the plain kernel does them: every query meets every
key, visible or not. Left out are norms, softmax, activation functions and the recomputation of
`activation_checkpointing`. A backward pass costs twice a forward pass: each product becomes two, one per factor.

Arithmetic intensity is operations per byte moved between memory and processor, if every product reads its factors once
and writes its result once. A device that can do more operations in the time it takes to move a byte is limited by its
memory, any other by its arithmetic (the roofline model: Williams, Waterman, Patterson 2009).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of
from tinylm.checks import require
from tinylm.evaluation.log_probs import token_nats
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.known import check_known
from tinylm.model import ModelConfig, RingKVCache, TransformerLM
from tinylm.model.normalization import RMSNorm
from tinylm.model.quantized import QuantizedLinear
from tinylm.model.size import norm_parameters


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of layer, summed over all blocks."""

    name: str
    parameters: int  # its own weights; tied weights count for the embedding only
    weight_bytes: int = 0  # memory of the weights that its products read, tied ones included
    products: int = 0  # multiplications per token
    numbers: int = 0  # activations read and written per token by its products
    pair_products: int = 0  # multiplications per token and key
    pair_numbers: int = 0  # numbers read and written per token and key
    key_numbers: int = 0  # numbers read per key

    def flops(self, tokens: int, keys: int) -> int:
        """Operations of a forward pass over some tokens, each of which attends to some keys."""
        return 2 * tokens * (self.products + self.pair_products * keys)

    def traffic(self, tokens: int, keys: int, number_bytes: int) -> int:
        """Bytes read and written in that pass."""
        numbers = tokens * (self.numbers + self.pair_numbers * keys) + self.key_numbers * keys
        return self.weight_bytes + numbers * number_bytes


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The cost of a model on sequences of one length."""

    parts: tuple[Part, ...]
    length: int  # tokens per sequence; costs per token are means over such a sequence
    number_bytes: int  # bytes of an activation, key or value
    weight_bytes: int  # memory of all weights as stored, quantized ones included
    cache_bytes: int  # memory of a KV cache for one text of full context
    cache_bytes_per_token: int
    window: int  # number of keys that the KV cache holds at most
    activation_bytes: int  # memory kept from the forward to the backward pass of one sequence

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(part.parameters for part in self.parts)

    @property
    def forward(self) -> int:
        """Operations per token of a forward pass."""
        return sum(part.flops(1, self.length) for part in self.parts)

    @property
    def backward(self) -> int:
        """Operations per token of a backward pass."""
        return 2 * self.forward

    def prefill_intensity(self, parts: tuple[Part, ...] | None = None) -> float:
        """Operations per byte when a whole sequence is read at once. Default: of all parts."""
        return self._intensity(parts, self.length, self.length)

    def decode_intensity(self, parts: tuple[Part, ...] | None = None) -> float:
        """Operations per byte when the last token of a sequence is read alone. Default: of all parts."""
        return self._intensity(parts, 1, min(self.length, self.window))

    def _intensity(self, parts: tuple[Part, ...] | None, tokens: int, keys: int) -> float:
        busy = [part for part in parts or self.parts if part.products or part.pair_products]
        traffic = sum(part.traffic(tokens, keys, self.number_bytes) for part in busy)
        return sum(part.flops(tokens, keys) for part in busy) / max(traffic, 1)


def profile(model: TransformerLM, length: int | None = None) -> Profile:
    """The cost of a standard model on sequences of `length` tokens, by default the context.

    The model reads one sequence, so that the memory kept for the backward pass can be measured.
    """
    check_known(model, "a profile", hooks=False)
    config, weight = model.config, model.embedding.weight
    cache = RingKVCache(config, 1, dtype=weight.dtype, device="meta")
    length = config.max_seq_len if length is None else length
    require(1 <= length <= config.max_seq_len, f"length must be from 1 to {config.max_seq_len}, got {length}")
    return Profile(
        parts=tuple(parts_of(config, stored_bytes(model))),
        length=length,
        number_bytes=weight.element_size(),
        weight_bytes=weight_bytes(model),
        cache_bytes=cache.num_bytes,
        cache_bytes_per_token=2 * config.num_layers * config.kv_heads * config.head_dim * weight.element_size(),
        window=cache.num_slots,
        activation_bytes=kept_bytes(model, torch.zeros(1, length, dtype=torch.long, device=weight.device)),
    )


def weight_bytes(module: nn.Module) -> int:
    """Memory of all weights of a module, tied ones once, quantized ones as stored."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


# --- counted from the config


def parts_of(config: ModelConfig, stored: dict[str, int]) -> Iterator[Part]:
    """The parts of a network in the order of a token's way, norms last but one; `stored` is from `stored_bytes`."""
    D, V, layers = config.d_model, config.vocab_size, config.num_layers
    heads, kv, F = config.num_heads * config.head_dim, config.kv_heads * config.head_dim, config.ff_width

    def linears(name: str, memory: int, *sizes: tuple[int, int], biases: int) -> Part:
        matrices = layers * sum(inputs * outputs for inputs, outputs in sizes)
        weights = matrices + layers * biases
        numbers = layers * sum(inputs + outputs for inputs, outputs in sizes)
        return Part(name=name, parameters=weights, weight_bytes=memory, products=matrices, numbers=numbers)

    yield Part(name="embedding", parameters=V * D)
    if config.positional_encoding == "learned":
        yield Part(name="positions", parameters=config.max_seq_len * D)
    sizes, biases = ((D, heads), (D, kv), (D, kv), (heads, D)), config.biased_qkv * (heads + 2 * kv) + config.bias * D
    yield linears("attention: projections", stored["attention"], *sizes, biases=biases)
    yield Part(  # q kᵀ, then weights times v; the weights are written and read
        name="attention: scores, values",
        parameters=0,
        numbers=layers * 2 * heads,
        pair_products=layers * 2 * heads,
        pair_numbers=layers * 2 * config.num_heads,
        key_numbers=layers * 2 * kv,
    )
    gates = [(D, F)] if config.activation == "swiglu" else []
    sizes = (*gates, (D, F), (F, D))
    biases = config.bias * sum(outputs for _, outputs in sizes)
    yield linears("feed-forward", stored["feedforward"], *sizes, biases=biases)
    yield Part(name="norms", parameters=norm_parameters(config))
    own = V * ((0 if config.tie_embeddings else D) + config.head_bias)
    yield Part(name="head", parameters=own, weight_bytes=stored["head"], products=V * D, numbers=V + D)


# --- measured


def stored_bytes(model: TransformerLM) -> dict[str, int]:
    """Memory of the linear layers of attention, feedforward (summed over blocks) and head."""
    sums = dict.fromkeys(("attention", "feedforward"), 0)
    for block in blocks_of(model):
        for name in sums:
            layers = getattr(block, name).modules()
            sums[name] += sum(weight_bytes(each) for each in layers if isinstance(each, nn.Linear | QuantizedLinear))
    return sums | {"head": weight_bytes(model.head)}


def kept_bytes(model: TransformerLM, ids: Tensor) -> int:
    """Memory that autograd keeps from the forward to the backward pass of a training step, without the weights."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), ids)}
    kept: dict[int, Tensor] = {}  # by address; holding the tensors keeps addresses from being reused

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    training, devices = model.training, [ids.device] if ids.device.type == "cuda" else []
    norms = {module: module.function for module in model.modules() if isinstance(module, RMSNorm)}
    with torch.random.fork_rng(devices), torch.enable_grad():
        model.train()  # dropout masks are kept too
        tune_for_training(model)  # as training does
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                token_nats(model(ids), ids).mean()
        finally:
            model.train(training)
            for norm, function in norms.items():
                norm.function = function
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in ours)
