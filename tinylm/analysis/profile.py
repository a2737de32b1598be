"""What a model costs, part by part: parameters, floating-point operations, memory, and what its speed is limited by.

Operations are those of matrix products, two for each multiplication, as the plain kernel does them: every query meets
every key, seen or not. Norms, softmax and activation functions are left out, and so is what `activation_checkpointing`
computes twice. Backward takes twice forward: each product becomes two, one for each of its factors.

Arithmetic intensity is operations for each byte that must move between memory and processor, if every product reads its
factors once and writes its result once. A device that does fewer operations than that in the time of moving a byte is
limited by its arithmetic, any other by its memory (the roofline of Williams, Waterman, Patterson 2009).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of
from tinylm.checks import require
from tinylm.model import ModelConfig, RingKVCache, TransformerLM
from tinylm.model.known import check_known
from tinylm.model.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class Part:
    """A kind of layer, all layers of it together."""

    name: str
    parameters: int
    """Weights of its own; tied ones are the embedding's."""
    weight_bytes: int = 0
    """Of the factors of its products that do not depend on what is read: weights, shared ones too."""
    products: int = 0
    """Multiplications for each token."""
    numbers: int = 0
    """Read and written for each token by its products."""
    pair_products: int = 0
    """Multiplications for each token and key."""
    pair_numbers: int = 0
    """Read and written for each token and key."""
    key_numbers: int = 0
    """Read for each key."""

    def flops(self, tokens: int, keys: int) -> int:
        """Operations to read some tokens, forward, where each meets some keys."""
        return 2 * tokens * (self.products + self.pair_products * keys)

    def traffic(self, tokens: int, keys: int, number_bytes: int) -> int:
        """Bytes that are read and written for that."""
        numbers = tokens * (self.numbers + self.pair_numbers * keys) + self.key_numbers * keys
        return self.weight_bytes + numbers * number_bytes


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a model costs."""

    parts: tuple[Part, ...]
    length: int
    """Tokens of a sequence; figures for each token are means over such sequences."""
    number_bytes: int
    """Of an activation, a key or a value."""
    weight_bytes: int
    """Of all weights as they are in memory, codes of 8 and 4 bits included."""
    cache_bytes: int
    """Of a KV cache for one text of full context."""
    cache_bytes_per_token: int
    window: int
    """Keys that the KV cache holds, at most."""
    activation_bytes: int
    """Kept from forward to backward of one sequence in training."""

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def forward(self) -> int:
        """Operations for each token to read a sequence."""
        return sum(part.flops(1, self.length) for part in self.parts)

    @property
    def backward(self) -> int:
        """Operations for each token to learn from a sequence that was read."""
        return 2 * self.forward

    def prefill_intensity(self, parts: tuple[Part, ...] | None = None) -> float:
        """Operations per byte where one sequence is read at once, of some parts; None: of all."""
        return self._intensity(parts, self.length, self.length)

    def decode_intensity(self, parts: tuple[Part, ...] | None = None) -> float:
        """Operations per byte where a single token is read after the others of a sequence."""
        return self._intensity(parts, 1, min(self.length, self.window))

    def _intensity(self, parts: tuple[Part, ...] | None, tokens: int, keys: int) -> float:
        busy = [part for part in parts or self.parts if part.products or part.pair_products]
        traffic = sum(part.traffic(tokens, keys, self.number_bytes) for part in busy)
        return sum(part.flops(tokens, keys) for part in busy) / max(traffic, 1)


def profile(model: TransformerLM, length: int | None = None) -> Profile:
    """What a model costs.

    Args:
        model: the network; one sequence is read to see what a training step would keep of it
        length: tokens of a sequence; None: the context

    Raises:
        ConfigError: for a length out of range, and a network with adapters or a part that its config does not describe.
    """
    check_known(model, "a profile", hooks=False)
    config, weight = model.config, model.embedding.weight
    length = config.max_seq_len if length is None else length
    require(1 <= length <= config.max_seq_len, f"length must be from 1 to {config.max_seq_len}, got {length}")
    return Profile(
        parts=tuple(parts_of(config, stored_bytes(model))),
        length=length,
        number_bytes=weight.element_size(),
        weight_bytes=weight_bytes(model),
        cache_bytes=RingKVCache(config, 1, dtype=weight.dtype, device="meta").num_bytes,
        cache_bytes_per_token=2 * config.num_layers * config.kv_heads * config.head_dim * weight.element_size(),
        window=config.sliding_window or config.max_seq_len,
        activation_bytes=kept_bytes(model, torch.zeros(1, length, dtype=torch.long, device=weight.device)),
    )


def weight_bytes(module: nn.Module) -> int:
    """The memory of all weights of a network or layer, tied ones once, codes of 8 and 4 bits included."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


# --- by arithmetic


def parts_of(config: ModelConfig, stored: dict[str, int]) -> Iterator[Part]:
    """The parts of a network in the order in which a token meets them, norms last but for the head.

    Args:
        config: the network's
        stored: bytes of the weights of its attention, feedforward and head, as `stored_bytes` gives them
    """
    D, V, layers, bias = config.d_model, config.vocab_size, config.num_layers, int(config.bias)
    heads, kv, F_ = config.num_heads * config.head_dim, config.kv_heads * config.head_dim, config.ff_width

    def linears(name: str, memory: int, *sizes: tuple[int, int]) -> Part:
        matrices = layers * sum(inputs * outputs for inputs, outputs in sizes)
        weights = matrices + layers * bias * sum(outputs for _, outputs in sizes)
        numbers = layers * sum(inputs + outputs for inputs, outputs in sizes)
        return Part(name=name, parameters=weights, weight_bytes=memory, products=matrices, numbers=numbers)

    yield Part(name="embedding", parameters=V * D)
    if config.positional_encoding == "learned":
        yield Part(name="positions", parameters=config.max_seq_len * D)
    yield linears("attention: projections", stored["attention"], (D, heads), (D, kv), (D, kv), (heads, D))
    yield Part(  # q kᵀ, then weights times v; the weights are written and read
        name="attention: scores, values",
        parameters=0,
        numbers=layers * 2 * heads,
        pair_products=layers * 2 * heads,
        pair_numbers=layers * 2 * config.num_heads,
        key_numbers=layers * 2 * kv,
    )
    gates = [(D, F_)] if config.activation == "swiglu" else []
    yield linears("feed-forward", stored["feedforward"], *gates, (D, F_), (F_, D))
    norm = D * (2 if config.norm == "layernorm" and config.bias else 1)
    qk_norms = 2 * config.head_dim if config.qk_norm else 0
    final = norm if config.norm_placement == "pre" else 0
    yield Part(name="norms", parameters=layers * (2 * norm + qk_norms) + final)
    own = 0 if config.tie_embeddings else V * D
    yield Part(name="head", parameters=own, weight_bytes=stored["head"], products=V * D, numbers=V + D)


# --- by looking


def stored_bytes(model: TransformerLM) -> dict[str, int]:
    """The memory of the weights of attention, feedforward and head, all blocks together; no norms."""
    sums = dict.fromkeys(("attention", "feedforward"), 0)
    for block in blocks_of(model):
        for name in sums:
            for layer in getattr(block, name).modules():
                if isinstance(layer, nn.Linear | QuantizedLinear):
                    sums[name] += weight_bytes(layer)
    return sums | {"head": weight_bytes(model.head)}


def kept_bytes(model: TransformerLM, ids: Tensor) -> int:
    """What a training step keeps for its backward pass, weights apart; each piece of memory counts once.

    Args:
        model: the network; neither its mode nor any random state changes
        ids: of the step, (B, T)
    """
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), ids)}
    kept: dict[int, Tensor] = {}  # by address, and held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    training = model.training
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        model.train()  # dropout keeps its masks
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        finally:
            model.train(training)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in ours)
