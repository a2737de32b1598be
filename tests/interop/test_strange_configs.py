"""Any config.json that transformers builds a model from: the same logits, or a refusal by name. Never other logits."""

import json
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.interop.test_configs import SHAPES
from tinylm.errors import DataError
from tinylm.interop import load_huggingface_model

LINEAR, LLAMA3 = dict(type="linear", factor=2.0), dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=8)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=6)
FULL, SLIDING = "full_attention", "sliding_attention"
VALUES: dict[str, list[Any]] = {  # values that some class of transformers reads, and some that none does
    "head_dim": [None, 4, 8, 16], "num_key_value_heads": [None, 1, 2, 4], "tie_word_embeddings": [True, False],
    "rope_theta": [100, 5e5], "rotary_emb_base": [100], "rotary_pct": [0.5, 1.0], "partial_rotary_factor": [0.5, 1.0],
    "rope_scaling": [
        None, LINEAR, LLAMA3, YARN, YARN | dict(mscale=2.0, mscale_all_dim=1.0), YARN | dict(attention_factor=1.5),
        YARN | dict(beta_fast=4.0, truncate=False), dict(type="dynamic", factor=2.0), LINEAR | dict(rope_theta=50.0),
    ],
    "rope_parameters": [dict(rope_type="default", rope_theta=50.0), YARN | dict(rope_theta=50.0)],
    "sliding_window": [None, 3, 5], "use_sliding_window": [True, False], "max_window_layers": [0, 1],
    "layer_types": [[FULL, FULL], [FULL, SLIDING], [SLIDING, SLIDING]], "no_rope_layers": [[1, 0], [0, 0], [1, 1]],
    "no_rope_layer_interval": [1, 2], "window_size": [3, 5], "attention_types": [[[["local"], 2]], [[["global"], 2]]],
    "attention_bias": [True, False], "mlp_bias": [True, False], "use_bias": [True, False], "enable_bias": [True, False],
    "hidden_act": ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "tanh", "quick_gelu", "swish"],
    "activation_function": ["gelu", "gelu_new", "relu", "silu"], "layer_norm_epsilon": [1e-2], "norm_epsilon": [1e-2],
    "layer_norm_eps": [1e-2], "rms_norm_eps": [1e-2], "use_parallel_residual": [True, False],
    "do_layer_norm_before": [True, False], "_remove_final_layer_norm": [True, False],
    "layer_norm_elementwise_affine": [True, False], "word_embed_proj_dim": [16, 32], "qk_layernorm": [True, False],
    "scale_attn_weights": [True, False], "scale_attn_by_inverse_layer_idx": [True, False], "n_inner": [None, 20],
    "intermediate_size": [20], "is_decoder": [True, False], "pretraining_tp": [2],
    "original_max_position_embeddings": [6], "n_ctx": [12], "mlp_type": ["default"], "dtype": ["float32"],
    "is_causal": [True, False],
}  # fmt: skip


def random_model(folder):
    """transformers' model of a folder's config.json, with random weights that are saved there; None if it refuses."""
    torch.manual_seed(0)
    try:
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    except Exception:  # of many kinds
        return None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            one = weight.dim() == 1 and name.endswith("weight")  # of norms
            weight.normal_(1.0 if one else 0.0, 0.3)
    return model


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SHAPES)), st.data())
@torch.no_grad()
def test_any_config_is_imported_with_equal_logits_or_refused_by_name(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("strange")
    names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
    changes = {name: data.draw(st.sampled_from(VALUES[name])) for name in names}
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    text = json.dumps(SHAPES[kind] | ids | changes)
    (folder / "config.json").write_text(text)
    model = random_model(folder)
    if model is None:
        return
    try:
        model.save_pretrained(folder)
        (folder / "config.json").write_text(text)
        expected = model(input_ids=torch.arange(24)[None]).logits
    except Exception:  # a model that transformers builds, but cannot run
        return
    try:
        ours = load_huggingface_model(folder)
    except DataError as error:
        event("refused")
        assert "\n" not in str(error) and "is not a config.json" not in str(error)
        return
    event("imported")
    torch.testing.assert_close(ours(torch.arange(24)[None]), expected, rtol=1e-4, atol=1e-4)
