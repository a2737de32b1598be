"""ModelConfig: the whole architecture in one frozen dataclass, checked when it is created.

Every module of the model takes a `ModelConfig` and nothing else. `PRESETS` are the sizes that configs/*.yaml use.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from tinylm.checks import FOREIGN_NAMES, check_types, require
from tinylm.errors import did_you_mean

PositionalEncoding = Literal["rotary", "learned", "sinusoidal", "none"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post"]
Activation = Literal["swiglu", "gelu", "gelu_tanh", "relu", "relu2"]
AttentionKernel = Literal["fused", "plain"]
FAR_MORE = 100  # weights that are merely missing are named later
MAX_TABLE = 1 << 27  # angles of a million positions of a head of 128


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a decoder-only transformer.

    The defaults are the shape of the presets: rotary positions, RMSNorm before each sublayer, SwiGLU, QK-norm, no bias,
    tied embeddings. Invalid values and combinations raise ConfigError.
    """

    vocab_size: int
    """Number of tokens. In a training run it comes from the tokenizer."""
    d_model: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Query heads per layer, each of d_model / num_heads."""
    num_kv_heads: int | None = None
    """Key/value heads per layer; 1 is multi-query attention. Default: num_heads."""
    d_ff: int | None = None
    """Width of the feed-forward layer. Default: 4 d_model; swiglu: 8/3 d_model, rounded up to a multiple of 64."""
    max_seq_len: int = 256
    """The context: most tokens that the model can see."""
    dropout: float = 0.0
    """Dropout probability of embeddings, attention weights and sublayer outputs."""
    positional_encoding: PositionalEncoding = "rotary"
    """Positional encoding: rotary, learned, sinusoidal or none."""
    norm: Norm = "rmsnorm"
    """Normalization: rmsnorm or layernorm."""
    norm_placement: NormPlacement = "pre"
    """pre: x + f(norm(x)), with a final norm. post: norm(x + f(x))."""
    norm_eps: float = 1e-5
    """Added to the variance or mean square before its root."""
    qk_norm: bool = True
    """RMSNorm of each head's queries and keys."""
    activation: Activation = "swiglu"
    """Feed-forward nonlinearity: swiglu (gated), gelu (exact), gelu_tanh, relu, or relu2 (ReLU squared)."""
    bias: bool = False
    """Biases in linear layers and in LayerNorm."""
    tie_embeddings: bool = True
    """Share the weights of the embedding and the output projection."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    sliding_window: int | None = None
    """Tokens that a query sees, itself included. Default: all."""
    attention_kernel: AttentionKernel = "fused"
    """fused: PyTorch's kernel. plain: the formula."""
    document_mask: bool = False
    """Hide the documents of one sequence from each other."""
    zero_init_output: bool = False
    """Start the last projection of every sublayer at zero."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        check_types(self)
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "max_seq_len")
        for name in (*sizes, "sliding_window"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        D, H, K = self.d_model, self.num_heads, self.kv_heads
        require(D % H == 0, f"d_model must be divisible by num_heads, got d_model={D} and num_heads={H}")
        require(H % K == 0, f"num_heads must be divisible by num_kv_heads, got num_heads={H} and num_kv_heads={K}")
        if self.positional_encoding == "rotary":
            E = self.head_dim
            require(E % 2 == 0, f"rotary positions need an even head_dim, got d_model={D} / num_heads={H} = {E}")
            require(0 < self.rope_theta < math.inf, f"rope_theta must be positive, got {self.rope_theta}")
        if self.positional_encoding == "sinusoidal":
            require(D % 2 == 0, f"sinusoidal positions need an even d_model, got {D}")
        table = {"rotary": self.max_seq_len * self.head_dim, "sinusoidal": self.max_seq_len * D}
        largest = table.get(self.positional_encoding, 0)
        require(largest <= MAX_TABLE, f"max_seq_len={self.max_seq_len}: its positions would need {largest:,} numbers")
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(0 < self.norm_eps < math.inf, f"norm_eps must be positive, got {self.norm_eps}")

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Dimension of one head, E."""
        return self.d_model // self.num_heads

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward layer, F."""
        if self.d_ff is not None:
            return self.d_ff
        return 64 * math.ceil(8 * self.d_model / 3 / 64) if self.activation == "swiglu" else 4 * self.d_model

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Creates a config from plain values, as stored in checkpoints and model folders.

        Unknown fields raise ConfigError, with a suggestion.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            require(name in fields, f"{name}: no such field of ModelConfig{did_you_mean(name, fields, FOREIGN_NAMES)}")
        require("vocab_size" in values, "vocab_size: missing; a model needs the number of its tokens")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)


# Fields that may change during a run, since they do not affect the meaning of the weights.
WITHOUT_WEIGHTS = ("attention_kernel", "activation_checkpointing", "dropout", "zero_init_output")


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=96, num_layers=2, num_heads=4, max_seq_len=128),
    "small": dict(d_model=128, num_layers=3, num_heads=4, max_seq_len=128),
    "medium": dict(d_model=192, num_layers=4, num_heads=6, max_seq_len=128),
    "large": dict(d_model=768, num_layers=12, num_heads=12, max_seq_len=1024),
    "gpt2": dict(
        d_model=768, num_layers=12, num_heads=12, max_seq_len=1024, positional_encoding="learned", norm="layernorm",
        activation="gelu_tanh", qk_norm=False, bias=True,
    ),
}  # fmt: skip


def preset(name: str, *, vocab_size: int, **changes: Any) -> ModelConfig:
    """The config of a preset, with some fields changed."""
    require(name in PRESETS, f"{name}: no such preset, known are {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
    return ModelConfig.from_dict({"vocab_size": vocab_size, **PRESETS[name], **changes})


def parameter_count(config: ModelConfig) -> int:
    """Computes the number of parameters of a `TransformerLM` without building one; tied weights count once."""
    width, heads, kv, head = config.d_model, config.num_heads, config.kv_heads, config.head_dim
    bias = int(config.bias)

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + bias * outputs

    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    attention = linear(width, heads * head) + 2 * linear(width, kv * head) + linear(heads * head, width)
    attention += 2 * head if config.qk_norm else 0
    gates = 2 if config.activation == "swiglu" else 1
    feedforward = gates * linear(width, config.ff_width) + linear(config.ff_width, width)
    total = config.num_layers * (attention + feedforward + 2 * norm)
    total += config.vocab_size * width * (1 if config.tie_embeddings else 2)
    total += config.max_seq_len * width if config.positional_encoding == "learned" else 0
    total += norm if config.norm_placement == "pre" else 0
    return total


def check_size(config: ModelConfig, weights: int, tensors: int) -> None:
    """Refuses a config that describes far more than its file holds, before a model of that size is built.

    Args:
        config: the config of a stored model
        weights: stored numbers
        tensors: stored tensors

    Raises:
        ConfigError: if the model has more layers or parameters.
    """
    parameters = parameter_count(config)
    described = f"the config has {config.num_layers:,} layers and {parameters:,} parameters"
    fits = config.num_layers <= tensors and parameters <= FAR_MORE * weights
    require(fits, f"{described}, the file {tensors:,} tensors of {weights:,} numbers")


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of training on one token at full context, forward and backward.

    The convention of PaLM (Chowdhery et al. 2022, appendix B) and of most published MFU figures: six operations per
    parameter, lookup tables excluded, plus 12 d_model * (visible tokens) per layer for the two products of attention,
    as if every query saw the whole context. Softmax and recomputation are left out.
    """
    lookups = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    lookups += config.max_seq_len * config.d_model if config.positional_encoding == "learned" else 0
    visible = min(config.max_seq_len, config.sliding_window or config.max_seq_len)
    return 6 * (parameter_count(config) - lookups) + 12 * config.num_layers * config.d_model * visible
