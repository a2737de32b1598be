"""Config: the architecture, with the fields of `tinylm.model.ModelConfig`, which also checks their values."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

NOT_OURS = ("attention_kernel", "activation_checkpointing")  # they concern PyTorch only
CHOICES = {
    "positional_encoding": ("rotary", "learned", "sinusoidal", "none"),
    "norm": ("rmsnorm", "layernorm"),
    "norm_placement": ("pre", "post", "output"),
    "residual": ("sequential", "parallel", "parallel_one_norm"),
    "qk_norm_width": ("head", "all"),
    "activation": ("swiglu", "gelu", "gelu_tanh", "relu", "relu2"),
}


def check(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary frequencies for a longer context than the one trained on; `positional.rotary_table` uses them."""

    kind: str
    factor: float
    original_max_seq_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        kinds = ("linear", "llama3", "yarn")
        check(self.kind in kinds, f"rope_scaling.kind must be one of {', '.join(kinds)}, got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture; `ModelConfig` documents every field."""

    vocab_size: int
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    max_seq_len: int = 256
    dropout: float = 0.0
    positional_encoding: str = "rotary"
    norm: str = "rmsnorm"
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    residual: str = "sequential"
    qk_norm: bool = True
    qk_norm_width: str = "head"
    activation: str = "swiglu"
    bias: bool = False
    qkv_bias: bool | None = None
    head_bias: bool = False
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    attention_scale: float | None = None
    sliding_window: int | None = None
    layer_pattern: str | None = None
    document_mask: bool = False
    zero_init_output: bool = False
    mup_base_width: int | None = None

    def __post_init__(self) -> None:
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            scaling = RopeScaling(**known_fields(RopeScaling, "config's rope_scaling", self.rope_scaling))
            object.__setattr__(self, "rope_scaling", scaling)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            check(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        pre = self.residual == "sequential" or self.norm_placement == "pre"
        check(pre, f"residual={self.residual} needs norm_placement=pre, got {self.norm_placement}")
        pattern, rotary = self.layer_pattern, self.positional_encoding == "rotary"
        if pattern is not None:
            letters = isinstance(pattern, str) and pattern != "" and {*pattern} <= {*"SLN"}
            check(letters, f"layer_pattern must be of the letters S, L and N, got {pattern!r}")
            both = ("S" in pattern) == (self.sliding_window is not None)
            check(both, f"layer_pattern={pattern}: S and sliding_window need each other, got {self.sliding_window}")
            check(rotary or "N" not in pattern, "layer_pattern: N needs positional_encoding=rotary")
        changed = self.rope_scaling is not None or self.rotary_fraction != 1
        check(rotary or not changed, "rope_scaling and rotary_fraction need positional_encoding=rotary")
        number = f"rotary positions turn an even number of a head's dimensions, got {self.rotary_dim}"
        check(not rotary or self.rotary_dim % 2 == 0 < self.rotary_dim <= self.head_dim, number)

    @property
    def kv_heads(self) -> int:
        """The number of key/value heads, K."""
        return self.num_kv_heads or self.num_heads

    @cached_property
    def head_dim(self) -> int:
        """Width of one head, E."""
        return self.d_model // self.num_heads if self.d_head is None else self.d_head

    @property
    def rotary_dim(self) -> int:
        """The number of dimensions of a head, counted from the first, that rotary positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def width_ratio(self) -> float:
        """d_model as a multiple of the base width of muP, m; 1 without muP."""
        return 1.0 if self.mup_base_width is None else self.d_model / self.mup_base_width

    @property
    def layer_kinds(self) -> str:
        """For each layer S (sliding window), L (full attention) or N (full attention without rotary positions)."""
        pattern = self.layer_pattern or ("L" if self.sliding_window is None else "S")
        return (pattern * self.num_layers)[: self.num_layers]

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward layer, F. Default: 4 D, or for swiglu 8/3 D rounded up to a multiple of 64."""
        if self.d_ff is not None:
            return self.d_ff
        return 64 * math.ceil(8 * self.d_model / 3 / 64) if self.activation == "swiglu" else 4 * self.d_model

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """A config from the fields of a `ModelConfig`, as stored in model folders; ValueError for an unknown name."""
        return cls(**known_fields(cls, "config", values))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by the name and in the order of PyTorch's state dict.

        A tied head's matrix is the embedding and is not listed.
        """
        D, E, F, V = self.d_model, self.head_dim, self.ff_width, self.vocab_size
        qkv_bias = self.bias if self.qkv_bias is None else self.qkv_bias

        def linear(name: str, inputs: int, outputs: int, bias: bool = self.bias) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})

        def norm(name: str) -> dict[str, tuple[int, ...]]:
            biased = self.bias and self.norm == "layernorm"
            return {f"{name}.weight": (D,)} | ({f"{name}.bias": (D,)} if biased else {})

        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, D)}
        if self.positional_encoding == "learned":
            shapes["positions.weight"] = (self.max_seq_len, D)
        for layer in range(self.num_layers):
            block = f"blocks.{layer}"
            heads = {"query": self.num_heads, "key": self.kv_heads, "value": self.kv_heads}
            shapes |= norm(f"{block}.attention_norm")
            for name, number in heads.items():
                shapes |= linear(f"{block}.attention.{name}", D, number * E, qkv_bias)
            shapes |= linear(f"{block}.attention.output", self.num_heads * E, D)
            for name in ("query", "key") if self.qk_norm else ():
                width = E if self.qk_norm_width == "head" else heads[name] * E
                shapes[f"{block}.attention.{name}_norm.weight"] = (width,)
            if self.residual != "parallel_one_norm":
                shapes |= norm(f"{block}.feedforward_norm")
            if self.activation == "swiglu":
                shapes |= linear(f"{block}.feedforward.gate", D, F)
            shapes |= linear(f"{block}.feedforward.input", D, F)
            shapes |= linear(f"{block}.feedforward.output", F, D)
        if self.norm_placement != "post":
            shapes |= norm("final_norm")
        if not self.tie_embeddings:
            shapes["head.weight"] = (V, D)
        if self.head_bias:
            shapes["head.bias"] = (V,)
        return shapes


def known_fields(kind: type, name: str, values: Any) -> dict[str, Any]:
    """The values of a dataclass's fields, by name; ValueError for an unknown or a missing field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    check(isinstance(values, dict), f"the {name} must have fields by name, got {values!r}")
    for field in values:
        known = field in fields or field in NOT_OURS
        check(known, f"{field}: no such field of the {name}; known are {', '.join(sorted(fields))}")
    for field in fields.values():
        given = field.name in values or field.default is not dataclasses.MISSING
        check(given, f"{field.name}: missing in the {name}")
    return {field: value for field, value in values.items() if field in fields}
