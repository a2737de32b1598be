"""ModelConfig: the whole architecture in one frozen dataclass, checked when it is created.

Every module of the model takes a `ModelConfig` and nothing else. A field that takes a `Part` accepts a user's
class or function instead of a built-in one; plugin.py defines the contracts. `PRESETS` are the sizes that
configs/*.yaml use.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from tinylm.checks import FOREIGN_NAMES, check_types, require
from tinylm.errors import did_you_mean
from tinylm.plugins import Part

PositionalEncoding = Literal["rotary", "learned", "sinusoidal", "none"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post", "output"]
Residual = Literal["sequential", "parallel", "parallel_one_norm"]
Activation = Literal["swiglu", "gelu", "gelu_tanh", "relu", "relu2"]
AttentionKernel = Literal["fused", "plain"]
MAX_TABLE = 1 << 27  # angles of a million positions of a head of 128


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Slower rotary frequencies, for a context longer than that of the first training.

    linear divides all frequencies by `factor` (Chen et al. 2023). llama3 divides those with less than `low_freq_factor`
    turns in the original context, keeps those with more than `high_freq_factor`, and interpolates between. yarn does so
    by dimension, between `beta_slow` and `beta_fast` turns, and scales cosines and sines (Peng et al. 2023).
    """

    kind: Literal["linear", "llama3", "yarn"]
    """linear, llama3 or yarn."""
    factor: float
    """Ratio of the new context to the original one, at least 1."""
    original_max_seq_len: int | None = None
    """llama3, yarn: the original context. Default: max_seq_len."""
    low_freq_factor: float = 1.0
    """llama3: turns in the original context below which a frequency is divided."""
    high_freq_factor: float = 4.0
    """llama3: turns above which a frequency is kept."""
    beta_fast: float = 32.0
    """yarn: turns above which a frequency is kept."""
    beta_slow: float = 1.0
    """yarn: turns below which a frequency is divided."""
    attention_factor: float | None = None
    """yarn: factor of cosines and sines. Default: 1 + ln(factor) / 10."""
    truncate: bool = True
    """yarn: round the bounds to whole dimensions."""

    def __post_init__(self) -> None:
        check_types(self, "rope_scaling.")
        require(1 <= self.factor < math.inf, f"rope_scaling.factor must be at least 1, got {self.factor}")
        length, attention = self.original_max_seq_len, self.attention_factor
        require(length is None or length >= 1, f"rope_scaling.original_max_seq_len must be at least 1, got {length}")
        for less, more in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            low, high = getattr(self, less), getattr(self, more)
            problem = f"rope_scaling.{less} must be positive and less than {more}, got {low} and {high}"
            require(0 < low < high < math.inf, problem)
        positive = attention is None or 0 < attention < math.inf
        require(positive, f"rope_scaling.attention_factor must be positive, got {attention}")


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
    """Query heads per layer."""
    num_kv_heads: int | None = None
    """Key/value heads, 1 = multi-query. Default: num_heads."""
    d_head: int | None = None
    """Width of a head. Default: d_model / num_heads."""
    d_ff: int | None = None
    """Width of the feed-forward layer. Default: 4 d_model; swiglu: 8/3 d_model, rounded up to a multiple of 64."""
    max_seq_len: int = 256
    """The context: most tokens that the model can see."""
    dropout: float = 0.0
    """Dropout of embeddings, attention, sublayer outputs."""
    positional_encoding: PositionalEncoding | Part = "rotary"
    """Positions: rotary, learned, sinusoidal or none."""
    attention: Part | None = None
    """Attention of your own. Default: the built-in."""
    feedforward: Part | None = None
    """Feed-forward layer of your own. Default: the built-in."""
    norm: Norm | Part = "rmsnorm"
    """Norms of the stream: rmsnorm or layernorm."""
    norm_placement: NormPlacement = "pre"
    """pre: x + f(norm(x)), with a final norm. post: norm(x + f(x)). output: x + norm(f(x)), with a final norm."""
    residual: Residual = "sequential"
    """sequential: attention, then feed-forward. parallel: both read x. parallel_one_norm: both read one norm of x."""
    norm_eps: float = 1e-5
    """Added under the root of every norm."""
    qk_norm: bool = True
    """RMSNorm of queries and keys."""
    qk_norm_width: Literal["head", "all"] = "head"
    """head: each head is normalized by itself. all: all heads of a token together."""
    activation: Activation | Part = "swiglu"
    """Feed-forward nonlinearity: swiglu (gated), gelu (exact), gelu_tanh, relu, or relu2 (ReLU squared)."""
    bias: bool = False
    """Biases in linear layers and in LayerNorm."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values. Default: bias."""
    head_bias: bool = False
    """Bias of the output projection."""
    tie_embeddings: bool = True
    """Share weights of embedding and output projection."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Slower rotary frequencies for a longer context. Default: none."""
    rotary_fraction: float = 1.0
    """Share of each head's dimensions, from the first on, that rotary positions rotate."""
    sliding_window: int | None = None
    """Tokens that a query sees, itself included. Default: all."""
    layer_pattern: str | None = None
    """One letter per layer, repeated: S sliding window, L all tokens, N all tokens without rotary positions."""
    attention_scale: float | None = None
    """Factor of the attention scores. Default: 1 / sqrt(head_dim)."""
    attention_kernel: AttentionKernel = "fused"
    """fused: PyTorch's kernel. plain: the formula."""
    document_mask: bool = False
    """Hide the documents of one sequence from each other."""
    zero_init_output: bool = False
    """Start the last projection of every sublayer at zero."""
    mup_base_width: int | None = None
    """muP: the width at which lr was chosen (docs/mup.md)."""
    activation_checkpointing: bool = False
    """Recompute blocks: less memory, a third more time."""

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", _rope_scaling(self.rope_scaling))
        for name in PLUGGABLE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or "." in value):
                object.__setattr__(self, name, Part.of(value, name))
        check_types(self)
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_head", "d_ff", "max_seq_len")
        for name in (*sizes, "sliding_window", "mup_base_width"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        D, H, K = self.d_model, self.num_heads, self.kv_heads
        divisible = self.d_head is not None or D % H == 0
        require(divisible, f"d_model must be divisible by num_heads, got d_model={D} and num_heads={H}")
        require(H % K == 0, f"num_heads must be divisible by num_kv_heads, got num_heads={H} and num_kv_heads={K}")
        if self.positional_encoding == "sinusoidal":
            require(D % 2 == 0, f"sinusoidal positions need an even d_model, got {D}")
        self._check_rotary()
        self._check_layers()
        table: dict[Any, int] = {"rotary": self.max_seq_len * self.rotary_dim, "sinusoidal": self.max_seq_len * D}
        largest = table.get(self.positional_encoding, 0)
        require(largest <= MAX_TABLE, f"max_seq_len={self.max_seq_len}: its positions would need {largest:,} numbers")
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        require(0 < self.norm_eps < math.inf, f"norm_eps must be positive, got {self.norm_eps}")
        scale = self.attention_scale
        require(scale is None or 0 < scale < math.inf, f"attention_scale must be positive, got {scale}")
        for name, part in self.parts.items() if self.mup_base_width is not None else ():
            known = name == "activation"
            require(known, f"mup_base_width: how {part} ({name}) changes with the width is not known; leave one out")

    def _check_rotary(self) -> None:
        fraction, dim, E = self.rotary_fraction, self.rotary_dim, self.head_dim
        require(0 < fraction <= 1, f"rotary_fraction must be above 0 and at most 1, got {fraction}")
        if self.positional_encoding == "rotary":
            head = f"d_model={self.d_model} / num_heads={self.num_heads}" if self.d_head is None else "d_head"
            require(fraction < 1 or E % 2 == 0, f"rotary positions need an even head_dim, got {head} = {E}")
            even = dim > 0 and dim % 2 == 0
            require(even, f"rotary_fraction must leave an even number to rotate, got {fraction} of {E} = {dim}")
            require(0 < self.rope_theta < math.inf, f"rope_theta must be positive, got {self.rope_theta}")
            yarn = self.rope_scaling is not None and self.rope_scaling.kind == "yarn"
            require(not yarn or self.rope_theta > 1, f"yarn needs a rope_theta above 1, got {self.rope_theta}")
            return
        for name, off in (("rope_scaling", self.rope_scaling is None), ("rotary_fraction", fraction == 1)):
            require(off, f"{name} needs positional_encoding=rotary, got {self.positional_encoding}")

    def _check_layers(self) -> None:
        pre = self.residual == "sequential" or self.norm_placement == "pre"
        require(pre, f"residual={self.residual} needs norm_placement=pre, got {self.norm_placement}")
        require(self.qk_norm or self.qk_norm_width == "head", "qk_norm_width=all needs qk_norm")
        pattern = self.layer_pattern
        if pattern is None:
            return
        letters = bool(pattern) and set(pattern) <= set("SLN")
        require(letters, f"layer_pattern must consist of the letters S, L and N, got {pattern!r}")
        if "N" in pattern:
            require(self.positional_encoding == "rotary", "layer_pattern: N needs positional_encoding=rotary")
        if "S" in pattern:
            require(self.sliding_window is not None, f"layer_pattern {pattern!r} has an S; set sliding_window")
        else:
            require(self.sliding_window is None, f"sliding_window needs an S in layer_pattern, got {pattern!r}")

    @property
    def parts(self) -> dict[str, Part]:
        """The plug-ins, by field."""
        values = {name: getattr(self, name) for name in PLUGGABLE}
        return {name: value for name, value in values.items() if isinstance(value, Part)}

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Dimension of one head, E."""
        return self.d_model // self.num_heads if self.d_head is None else self.d_head

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary positions rotate."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def layer_kinds(self) -> str:
        """One letter per layer: S, L or N, as in `layer_pattern`."""
        pattern = self.layer_pattern or ("L" if self.sliding_window is None else "S")
        return (pattern * self.num_layers)[: self.num_layers]

    @property
    def biased_qkv(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    def window(self, kind: str) -> int | None:
        """Tokens that a query sees in layers of a kind of `layer_kinds`; None: all."""
        return self.sliding_window if kind == "S" else None

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
        """The fields as plain values, without `attention` and `feedforward` where they are built in."""
        plain = {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None or name not in OWN
        }
        return plain | {name: part.to_dict() for name, part in self.parts.items()}


def _rope_scaling(values: dict[str, Any]) -> RopeScaling:
    fields = [field.name for field in dataclasses.fields(RopeScaling)]
    for name in values:
        hint = did_you_mean(name, fields, FOREIGN_NAMES)
        require(name in fields, f"rope_scaling.{name}: no such field of RopeScaling{hint}")
    for name in ("kind", "factor"):
        require(name in values, f"rope_scaling.{name}: missing")
    return RopeScaling(**values)


# Fields that take a plug-in.
OWN = ("attention", "feedforward")  # and nothing else
PLUGGABLE = (*OWN, "norm", "activation", "positional_encoding")

# Fields that may change during a run, since they do not affect the meaning of the weights.
WITHOUT_WEIGHTS = ("attention_kernel", "activation_checkpointing", "dropout", "zero_init_output")


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=96, num_layers=2, num_heads=4, max_seq_len=128),
    "small": dict(d_model=128, num_layers=3, num_heads=4, max_seq_len=128),
    "medium": dict(d_model=192, num_layers=4, num_heads=6, max_seq_len=128),
    "base": dict(d_model=384, num_layers=6, num_heads=6, max_seq_len=256),
    "big": dict(d_model=512, num_layers=8, num_heads=8, max_seq_len=512),
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
