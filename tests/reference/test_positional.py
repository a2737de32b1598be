"""Rotary frequencies against transformers' and against what their definitions say."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tinylm.reference import Config, NumpyTransformerLM
from tinylm.reference.config import RopeScaling

TRANSFORMERS = dict(
    original_max_seq_len="original_max_position_embeddings", low_freq_factor="low_freq_factor", kind="rope_type",
    high_freq_factor="high_freq_factor", beta_fast="beta_fast", beta_slow="beta_slow", factor="factor",
    attention_factor="attention_factor", truncate="truncate",
)  # fmt: skip
SCALINGS = [
    dict(kind="linear", factor=4.0),
    dict(kind="llama3", factor=8.0, original_max_seq_len=8192, low_freq_factor=1.0, high_freq_factor=4.0),
    dict(kind="llama3", factor=32.0, original_max_seq_len=512, low_freq_factor=2.0, high_freq_factor=16.0),
    dict(kind="yarn", factor=4.0, original_max_seq_len=32768),
    dict(kind="yarn", factor=16.0, original_max_seq_len=4096, beta_fast=8.0, beta_slow=0.5, truncate=False),
    dict(kind="yarn", factor=2.0, original_max_seq_len=16, attention_factor=0.8),
    dict(kind="yarn", factor=1.0, original_max_seq_len=2048),
]


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_frequencies_are_those_of_transformers(scaling, theta, fraction):
    """transformers computes in float32; the angle of position 1 is the frequency, the length of a pair the factor."""
    theirs = {TRANSFORMERS[name]: value for name, value in scaling.items()}
    theirs |= {"rope_theta": theta, "partial_rotary_factor": fraction}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=65536, rope_parameters=theirs)
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["kind"]](config, torch.device("cpu"))
    ours = Config(
        vocab_size=3, d_model=128, num_heads=2, num_layers=1, rope_theta=theta, rotary_fraction=fraction,
        rope_scaling=RopeScaling(**scaling),
    )  # fmt: skip
    cos, sin = NumpyTransformerLM(ours, dtype=np.float64).positions[:, 1]
    np.testing.assert_allclose(np.arctan2(sin, cos), expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.hypot(cos, sin), factor, rtol=1e-12)


def test_the_original_context_is_by_default_that_of_the_model():
    shape = dict(vocab_size=3, d_model=8, num_heads=2, num_layers=1, max_seq_len=300)
    for kind in ("llama3", "yarn"):
        ours, theirs = (
            NumpyTransformerLM(Config(**shape, rope_scaling=dict(kind=kind, factor=4.0, **given))).positions
            for given in ({}, dict(original_max_seq_len=300))
        )
        assert np.array_equal(ours, theirs)
