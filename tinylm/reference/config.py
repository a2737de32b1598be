"""Config: the architecture, with the fields of `tinylm.model.ModelConfig`, which also checks them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

NOT_OURS = ("attention_kernel", "activation_checkpointing")  # they concern PyTorch only


@dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture; `ModelConfig` documents every field."""

    vocab_size: int
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_ff: int | None = None
    max_seq_len: int = 256
    dropout: float = 0.0
    positional_encoding: str = "rotary"
    norm: str = "rmsnorm"
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    qk_norm: bool = True
    activation: str = "swiglu"
    bias: bool = False
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    sliding_window: int | None = None
    document_mask: bool = False
    zero_init_output: bool = False

    @property
    def kv_heads(self) -> int:
        """The number of key/value heads, K."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one head, E."""
        return self.d_model // self.num_heads

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward layer, F. Default: 4 D, or for swiglu 8/3 D rounded up to a multiple of 64."""
        if self.d_ff is not None:
            return self.d_ff
        return 64 * math.ceil(8 * self.d_model / 3 / 64) if self.activation == "swiglu" else 4 * self.d_model

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """A config from the fields of a `ModelConfig`, as stored in model folders; ValueError for an unknown name."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known and name not in NOT_OURS:
                raise ValueError(f"{name}: no such field of the config; known are {', '.join(sorted(known))}")
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by the name and in the order of PyTorch's state dict.

        A tied head is the embedding and is not listed.
        """
        D, E, F, V = self.d_model, self.head_dim, self.ff_width, self.vocab_size

        def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if self.bias else {})

        def norm(name: str) -> dict[str, tuple[int, ...]]:
            biased = self.bias and self.norm == "layernorm"
            return {f"{name}.weight": (D,)} | ({f"{name}.bias": (D,)} if biased else {})

        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, D)}
        if self.positional_encoding == "learned":
            shapes["positions.weight"] = (self.max_seq_len, D)
        for layer in range(self.num_layers):
            block = f"blocks.{layer}"
            shapes |= norm(f"{block}.attention_norm")
            shapes |= linear(f"{block}.attention.query", D, self.num_heads * E)
            shapes |= linear(f"{block}.attention.key", D, self.kv_heads * E)
            shapes |= linear(f"{block}.attention.value", D, self.kv_heads * E)
            shapes |= linear(f"{block}.attention.output", self.num_heads * E, D)
            if self.qk_norm:
                shapes |= {f"{block}.attention.{name}_norm.weight": (E,) for name in ("query", "key")}
            shapes |= norm(f"{block}.feedforward_norm")
            if self.activation == "swiglu":
                shapes |= linear(f"{block}.feedforward.gate", D, F)
            shapes |= linear(f"{block}.feedforward.input", D, F)
            shapes |= linear(f"{block}.feedforward.output", F, D)
        if self.norm_placement == "pre":
            shapes |= norm("final_norm")
        if not self.tie_embeddings:
            shapes["head.weight"] = (V, D)
        return shapes
