"""A config.json is imported completely, or refused by the name of a field."""

import re

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interop.tables import EXPORTS, SHAPE
from tests.strategies import model_configs
from tinylm.errors import ConfigError
from tinylm.interop.configs import HARMLESS, export_config, import_config
from tinylm.interop.families import FAMILIES, choose_family
from tinylm.model import ModelConfig

BOTH = dict(vocab_size=37, num_hidden_layers=2, num_attention_heads=4, hidden_size=32, max_position_embeddings=24)
LLAMA = dict(model_type="llama", intermediate_size=44, hidden_act="silu", **BOTH)
QWEN3 = LLAMA | dict(model_type="qwen3", head_dim=8, num_key_value_heads=2)
MISTRAL = LLAMA | dict(model_type="mistral", num_key_value_heads=2)
GPT2 = dict(model_type="gpt2", vocab_size=37, n_layer=2, n_head=4, n_embd=32, n_positions=24)
TRAINING_ONLY = {"document_mask", "zero_init_output", "activation_checkpointing", "attention_kernel"}
NOT_EXPORTED = TRAINING_ONLY | {"rope_theta"}  # GPT-2 has no rope_theta


def imported(values, **changes):
    return import_config(values | changes)[0]


@pytest.mark.parametrize(("changes", "_"), EXPORTS.values(), ids=EXPORTS)
def test_an_exported_config_is_imported_unchanged(changes, _):
    config = ModelConfig(**SHAPE | dict(dropout=0.1) | changes)
    family = choose_family(config)
    again, found = import_config({"model_type": family.model_type, **export_config(config, family)})
    assert found is family
    for name, value in config.to_dict().items():
        expected = {"num_kv_heads": config.kv_heads, "bias": config.bias or family.biased}.get(name, value)
        if name not in NOT_EXPORTED or (name == "rope_theta" and config.positional_encoding == "rotary"):
            assert (again.kv_heads if name == "num_kv_heads" else getattr(again, name)) == expected, name


def test_defaults_are_those_of_transformers():
    """For a config.json that has the shape only."""
    for values in (LLAMA, QWEN3, MISTRAL, GPT2):
        config, family = import_config(values)
        theirs = transformers.AutoConfig.for_model(**values)
        for name, value in export_config(config, family).items():
            found = theirs.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(theirs, name)
            expected = 4 * 32 if name == "n_inner" else found
            assert value == expected, f"{family.model_type}: {name}"


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_of_every_family_are_those_of_transformers(kind):
    theirs = transformers.AutoConfig.for_model(kind)
    for name, value in FAMILIES[kind].defaults.items():
        found = theirs.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(theirs, name)
        if name in ("hidden_act", "sliding_window", "num_key_value_heads"):
            continue  # defaults that depend on other fields
        assert value == found, name


REFUSED = {
    "linear scaling": (LLAMA, dict(rope_scaling={"type": "linear", "factor": 2.0}),
                       'rope_scaling is {"type": "linear", "factor": 2.0}; '
                       "tinylm supports unscaled rotary positions only"),
    "llama3 scaling": (LLAMA, dict(rope_parameters={"rope_type": "llama3", "rope_theta": 500.0}), "rope_parameters is"),
    "partial rotary": (LLAMA, dict(rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}),
                       "rope_parameters is"),
    "partial rotary, old": (LLAMA, dict(partial_rotary_factor=0.5),
                            "partial_rotary_factor is 0.5; tinylm does not support this field"),
    "rope of no shape": (LLAMA, dict(rope_scaling=[2]), "rope_scaling is [2]"),
    "two thetas": (LLAMA, dict(rope_theta=2.0, rope_parameters={"rope_theta": 3.0}), "rope_theta is 2.0, but 3.0 in"),
    "bias of attention alone": (LLAMA, dict(attention_bias=True), "mlp_bias is false; tinylm supports only true here"),
    "bias of the feed-forward alone": (LLAMA, dict(mlp_bias=True), "mlp_bias is true; tinylm supports only false here"),
    "bias with QK-norm": (QWEN3, dict(attention_bias=True), "attention_bias is true; tinylm supports only false"),
    "wide heads": (QWEN3, dict(head_dim=128), "head_dim is 128; tinylm supports only 8"),
    "wide heads by default": (
        {k: v for k, v in QWEN3.items() if k != "head_dim"}, {}, "head_dim is 128; tinylm supports only 8"
    ),
    "another activation": (LLAMA, dict(hidden_act="gelu"), 'hidden_act is "gelu"; tinylm supports silu here'),
    "a gate in GPT-2": (GPT2, dict(activation_function="silu"), 'activation_function is "silu"; tinylm supports gelu'),
    "an activation of no kind": (LLAMA, dict(hidden_act=["silu"]), "hidden_act"),
    "windows in some layers": (QWEN3, dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
                               'layer_types is ["full_attention", "sliding_attention"]; '
                               'tinylm supports only ["sliding_attention", "sliding_attention"] here'),
    "scaled by layer": (GPT2, dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is true"),
    "not scaled": (GPT2, dict(scale_attn_weights=False), "scale_attn_weights is false; tinylm supports only true here"),
    "cross attention": (GPT2, dict(add_cross_attention=True), "add_cross_attention is true"),
    "experts": (MISTRAL, dict(num_local_experts=8), "num_local_experts is 8; tinylm does not support this field"),
    "quantized": (LLAMA, dict(quantization_config={"bits": 4}), 'quantization_config is {"bits": 4}; tinylm does not'),
    "code": (LLAMA, dict(auto_map={"AutoModel": "x.Y"}), "auto_map is"),
    "another model": (LLAMA, dict(model_type="mixtral"), "model_type is 'mixtral': known are llama, qwen3, mistral,"),
    "Qwen2": (LLAMA, dict(model_type="qwen2"), "model_type is 'qwen2': only its queries, keys and values have a bias"),
    "no model": (LLAMA, dict(model_type=None), "model_type is missing"),
    "no width": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, {}, "hidden_size is missing"),
    "pre-norm OPT": (LLAMA, dict(model_type="opt", activation_function="relu", ffn_dim=44), "do_layer_norm_before is"),
    "layers that are no number": (LLAMA, dict(num_hidden_layers="two"), "num_layers must be int, got 'two'"),
    "heads that do not divide": (LLAMA, dict(num_attention_heads=5), "d_model must be divisible by num_heads"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_field_that_would_change_logits_is_refused_by_name(values, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        import_config(values | changes)
    assert "\n" not in str(raised.value)


def test_merging_different_dropouts_is_reported(capsys):
    """They only affect training."""
    assert imported(GPT2, resid_pdrop=0.2).dropout == 0.2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[0] for line in lines] == [
        "tinylm: config.json: embd_pdrop is 0.1", "tinylm: config.json: attn_pdrop is 0.1",
    ]  # fmt: skip


def test_equivalent_fields_are_imported_alike():
    assert imported(LLAMA).sliding_window is None and imported(MISTRAL).sliding_window == 4096
    assert imported(MISTRAL, sliding_window=None).sliding_window is None
    assert imported(QWEN3, sliding_window=4).sliding_window is None  # unused
    window = dict(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert imported(QWEN3, **window).sliding_window == 4
    assert (
        imported(LLAMA, rope_theta=5.0).rope_theta
        == imported(LLAMA, rope_parameters={"rope_theta": 5.0}).rope_theta
        == 5.0
    )
    assert imported(LLAMA, rope_interleaved=False) == imported(LLAMA)  # SmolLM2's config has this field
    assert imported(LLAMA, rope_scaling=None, head_dim=None, pretraining_tp=1, something_new=None) == imported(LLAMA)
    assert imported(GPT2, n_inner=None).ff_width == 128 and imported(GPT2, n_inner=50).ff_width == 50
    assert (
        imported(GPT2, activation_function="gelu_pytorch_tanh").activation == imported(GPT2).activation == "gelu_tanh"
    )


@settings(max_examples=30, deadline=None)
@given(model_configs(qk_norm=st.just(False)), st.sampled_from(sorted(HARMLESS)), st.text(max_size=3))
def test_harmless_fields_are_ignored_and_unknown_ones_refused(config, name, value):
    try:
        family = choose_family(config)
    except ConfigError:
        return
    values = {"model_type": family.model_type, **export_config(config, family)}
    if name not in ("model_type", "max_window_layers", "no_rope_layer_interval"):
        assert import_config(values | {name: value}) == import_config(values)
    if value:
        with pytest.raises(ConfigError, match=f"^new_{name} is .* tinylm does not support this field"):
            import_config(values | {f"new_{name}": value})


def test_every_field_that_transformers_writes_is_known():
    """Otherwise a config.json would be refused for a field at its default."""
    for kind, family in FAMILIES.items():
        theirs = transformers.AutoConfig.for_model(kind).to_dict()
        config = ModelConfig(vocab_size=37)
        known = HARMLESS | {"rope_parameters"} | export_config(config, family).keys()
        common = transformers.PretrainedConfig().to_dict()
        assert {name for name, value in theirs.items() if value is not None} - known - common.keys() == set(), kind
