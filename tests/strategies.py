"""Shared test inputs: any model config, token ids for it, and a model in which every weight matters."""

import dataclasses

import torch
from hypothesis import strategies as st
from torch import Tensor

from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.config import OWN, RopeScaling


@st.composite
def model_configs(draw, **overrides: st.SearchStrategy) -> ModelConfig:
    """Draws every field of a small ModelConfig; `overrides` are strategies for single fields, by name."""
    values = {}

    def pick(name, strategy):
        values[name] = draw(overrides.get(name, strategy))
        return values[name]

    heads = pick("num_heads", st.sampled_from([1, 2, 4]))
    positions = pick("positional_encoding", st.sampled_from(["rotary", "learned", "sinusoidal", "none"]))
    head = pick("d_head", st.none() | (st.sampled_from([2, 4, 6]) if positions == "rotary" else st.integers(1, 5)))
    even = positions == "rotary" or (positions == "sinusoidal" and heads == 1)
    pick(
        "d_model",
        st.sampled_from([4, 6] if even else [3, 4, 5] if heads > 1 else [4, 5, 7]).map(lambda width: width * heads),
    )
    head = head or values["d_model"] // heads
    pick("num_kv_heads", st.sampled_from([None, *(K for K in (1, 2, 4) if heads % K == 0)]))
    pick("vocab_size", st.integers(2, 20))
    pick("num_layers", st.integers(1, 3))
    pick("d_ff", st.sampled_from([None, 1, 7, 16]))
    pick("max_seq_len", st.integers(1, 12))
    pick("dropout", st.sampled_from([0.0, 0.2]))
    pick("norm", st.sampled_from(["rmsnorm", "layernorm"]))
    placement = pick("norm_placement", st.sampled_from(["pre", "post", "output"]))
    forms = ["sequential", "parallel", "parallel_one_norm"] if placement == "pre" else ["sequential"]
    pick("residual", st.sampled_from(forms))
    pick("norm_eps", st.sampled_from([1e-6, 1e-5, 1e-3]))
    pick("activation", st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu", "relu2"]))
    pick("rope_theta", st.sampled_from([100.0, 10000.0, 1e6]))
    rotary = positions == "rotary"
    pick("rope_scaling", st.none() | rope_scalings() if rotary else st.none())
    pick("rotary_fraction", st.sampled_from([1.0, *(n / head for n in range(2, head, 2))]) if rotary else st.just(1.0))
    window = pick("sliding_window", st.none() | st.integers(1, 14))
    pick("layer_pattern", st.none() | layer_patterns("SLN" if rotary else "SL", window is not None))
    pick("attention_scale", st.sampled_from([None, 1.0, 0.3]))
    pick("qkv_bias", st.sampled_from([None, True, False]))
    pick("attention_kernel", st.sampled_from(["fused", "plain"]))
    pick("mup_base_width", st.sampled_from([None, 3, 8]))
    normed = pick("qk_norm", st.booleans())
    pick("qk_norm_width", st.sampled_from(["head", "all"] if normed else ["head"]))
    switches = ("bias", "head_bias", "tie_embeddings", "document_mask", "zero_init_output", "activation_checkpointing")
    for name in switches:
        pick(name, st.booleans())
    drawn = {field.name for field in dataclasses.fields(ModelConfig)} - set(OWN)  # plug-ins: tests/test_plugins.py
    assert values.keys() == drawn, "a field is not drawn"
    return ModelConfig(**values)


def rope_scalings() -> st.SearchStrategy[RopeScaling]:
    """Scaled rotary positions of every kind."""
    return st.builds(
        RopeScaling,
        kind=st.sampled_from(["linear", "llama3", "yarn"]),
        factor=st.sampled_from([1.0, 2.0, 8.0]),
        original_max_seq_len=st.sampled_from([None, 8, 64]),
        low_freq_factor=st.sampled_from([1.0, 2.0]),
        attention_factor=st.sampled_from([None, 0.7]),
        truncate=st.booleans(),
    )


def layer_patterns(letters: str, windows: bool) -> st.SearchStrategy[str]:
    """Patterns of layers with at least one S, or without any."""
    if not windows:
        return st.text(letters.replace("S", ""), min_size=1, max_size=4)
    return st.text(letters, min_size=1, max_size=4).filter(lambda pattern: "S" in pattern)


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> TransformerLM:
    """A model in eval mode with random weights: no norm weight is one, no bias or zero-initialized layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    model = TransformerLM(config).to(dtype).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if weight.dim() == 2:
            weight.data.copy_(noise * weight.shape[1] ** -0.5)  # keeps activations at their scale
        else:
            weight.data.copy_(noise * 0.3 + (1.0 if name.endswith("norm.weight") else 0.0))
    return model


def random_ids(config: ModelConfig, batch_size: int = 2, length: int | None = None, seed: int = 0) -> Tensor:
    """Random token ids, (B, T); T defaults to the context length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch_size, length or config.max_seq_len), generator=generator)
