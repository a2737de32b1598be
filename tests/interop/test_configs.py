"""A config.json is imported completely, or refused by the name of a field."""

import json
import re

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interop.tables import EXPORTS, SHAPE
from tests.published import CONFIGS
from tests.strategies import model_configs
from tinylm.errors import ConfigError
from tinylm.interop.configs import HARMLESS, OWN_OPTIONS, check_generation_config, export_config, import_config
from tinylm.interop.families import FAMILIES, choose_family
from tinylm.model import ModelConfig

BOTH = dict(vocab_size=37, num_hidden_layers=2, num_attention_heads=4, hidden_size=32, max_position_embeddings=24)
LLAMA = dict(model_type="llama", intermediate_size=44, hidden_act="silu", **BOTH)
QWEN3 = LLAMA | dict(model_type="qwen3", head_dim=8, num_key_value_heads=2)
QWEN2 = LLAMA | dict(model_type="qwen2", num_key_value_heads=2)
MISTRAL = LLAMA | dict(model_type="mistral", num_key_value_heads=2)
SMOLLM3 = LLAMA | dict(model_type="smollm3", num_key_value_heads=2)
GPT2 = dict(model_type="gpt2", vocab_size=37, n_layer=2, n_head=4, n_embd=32, n_positions=24)
NEO = dict(
    model_type="gpt_neo", vocab_size=37, num_layers=2, num_heads=4, hidden_size=32, max_position_embeddings=24,
    attention_types=[[["global", "local"], 1]],
)  # fmt: skip
NEOX = LLAMA | dict(model_type="gpt_neox", hidden_act="gelu")
PHI = LLAMA | dict(model_type="phi", hidden_act="gelu_new")
OPT = dict(model_type="opt", ffn_dim=44, **BOTH)
STARCODER2 = LLAMA | dict(model_type="starcoder2", hidden_act="gelu_pytorch_tanh", num_key_value_heads=2)
SHAPES = {
    "llama": LLAMA, "qwen3": QWEN3, "qwen2": QWEN2, "mistral": MISTRAL, "smollm3": SMOLLM3, "gpt2": GPT2,
    "gpt_neo": NEO, "gpt_neox": NEOX, "phi": PHI, "opt": OPT, "starcoder2": STARCODER2,
    "arcee": LLAMA | dict(model_type="arcee", hidden_act="relu2"), "olmo2": LLAMA | dict(model_type="olmo2"),
}  # fmt: skip
TRAINING_ONLY = {
    "document_mask", "zero_init_output", "mup_base_width", "activation_checkpointing", "attention_kernel",
}  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=6)


def imported(values, **changes):
    return import_config(values | changes)[0]


def meaning(config):
    """The fields of a config that matter to an export, with derived values in place of null."""
    values = {name: value for name, value in config.to_dict().items() if name not in TRAINING_ONLY}
    values |= {"num_kv_heads": config.kv_heads, "d_ff": config.ff_width, "qkv_bias": config.biased_qkv}
    if config.positional_encoding == "learned":
        del values["rope_theta"]
    return values | {"d_head": config.head_dim}


@pytest.mark.parametrize(("changes", "_"), EXPORTS.values(), ids=EXPORTS)
def test_an_exported_config_is_imported_unchanged(changes, _):
    config = ModelConfig.from_dict(SHAPE | dict(dropout=0.1) | changes)
    family = choose_family(config)
    again, found = import_config({"model_type": family.model_type, **export_config(config, family)})
    assert found is family
    assert meaning(again) == meaning(family.with_biases(config))


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_transformers(kind):
    """For a config.json that has the shape only."""
    values = SHAPES[kind]
    config, family = import_config(values)
    theirs = transformers.AutoConfig.for_model(**values)
    rope = getattr(theirs, "rope_parameters", None) or {}
    derived = {
        "rope_theta": rope.get("rope_theta"), "rotary_emb_base": rope.get("rope_theta"), "n_inner": 4 * 32,
        "partial_rotary_factor": rope.get("partial_rotary_factor"), "rotary_pct": rope.get("partial_rotary_factor"),
    }  # fmt: skip
    if kind == "gpt_neo":
        derived["intermediate_size"] = 4 * 32
    for name, value in export_config(config, family).items():
        if name in ("hidden_act", "attention_dropout"):  # given; one of several dropouts
            continue
        assert value == (derived[name] if name in derived else getattr(theirs, name)), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_of_every_family_are_those_of_transformers(kind):
    theirs = transformers.AutoConfig.for_model(kind)
    for name, value in FAMILIES[kind].defaults.items():
        if name in ("sliding_window", "num_key_value_heads"):
            continue  # defaults that depend on other fields
        assert value == getattr(theirs, name), name


REFUSED = {
    "dynamic scaling": (LLAMA, dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
                        'rope_type of rope_scaling is "dynamic"; tinylm supports only default, linear, llama3, yarn'),
    "unknown scaling": (LLAMA, dict(rope_parameters={"rope_type": "su", "rope_theta": 5.0}), 'rope_scaling is "su"'),
    "a scaling without its factor": (LLAMA, dict(rope_scaling={"rope_type": "linear"}), "factor is missing"),
    "llama3 scaling without its numbers": (LLAMA, dict(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
                                           "rope_scaling: low_freq_factor is missing"),
    "a field of another scaling": (LLAMA, dict(rope_scaling=YARN | dict(short_factor=[1.0])),
                                   "rope_scaling: short_factor is [1.0]; tinylm does not support this field for yarn"),
    "a factor for no scaling": (LLAMA, dict(rope_scaling={"factor": 2.0}), "rope_scaling: factor is 2.0"),
    "a factor that is no number": (LLAMA, dict(rope_scaling={"type": "linear", "factor": "2"}), "rope_scaling.factor"),
    "a factor below one": (LLAMA, dict(rope_scaling={"type": "linear", "factor": 0.5}), "rope_scaling.factor must be"),
    "positions of each layer": (LLAMA, dict(rope_parameters={"full_attention": {"rope_theta": 1.0}}),
                                "rope_scaling: full_attention is"),
    "two scalings": (LLAMA, dict(rope_parameters={"rope_type": "default"}, rope_scaling=YARN),
                     'rope_scaling: rope_type is "yarn", but "default" elsewhere'),
    "partial rotary": (LLAMA, dict(rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}),
                       "partial_rotary_factor is 0.5; tinylm supports only 1.0 here"),
    "partial rotary, old": (LLAMA, dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; tinylm supports"),
    "rope of no shape": (LLAMA, dict(rope_scaling=[2]), "rope_scaling is [2]"),
    "two thetas": (LLAMA, dict(rope_theta=2.0, rope_parameters={"rope_theta": 3.0}),
                   "rope_theta is 2.0, but rope_theta of rope_parameters is 3.0; make them equal"),
    "a fraction that GPT-NeoX does not read": (NEOX, dict(partial_rotary_factor=0.5),
                                               "partial_rotary_factor is 0.5, but"),
    "two fractions": (NEOX, dict(rotary_pct=0.5, partial_rotary_factor=0.25), "partial_rotary_factor is 0.25, but"),
    "bias of attention alone": (LLAMA, dict(attention_bias=True), "mlp_bias is false; tinylm supports only true here"),
    "bias of the feed-forward alone": (LLAMA, dict(mlp_bias=True), "mlp_bias is true; tinylm supports only false here"),
    "bias with QK-norm": (QWEN3, dict(attention_bias=True), "attention_bias is true; tinylm supports only false"),
    "no bias in GPT-NeoX": (NEOX, dict(attention_bias=False), "attention_bias is false; tinylm supports only true"),
    "QK-norm in phi": (PHI, dict(qk_layernorm=True), "qk_layernorm is true; tinylm supports only false"),
    "another activation": (LLAMA, dict(hidden_act="gelu"), 'hidden_act is "gelu"; tinylm supports silu here'),
    "a gate in GPT-2": (GPT2, dict(activation_function="silu"), 'activation_function is "silu"; tinylm supports gelu'),
    "an activation of no kind": (LLAMA, dict(hidden_act=["silu"]), "hidden_act"),
    "types of other layers": (QWEN3, dict(layer_types=["full_attention"] * 3), "layer_types is"),
    "types of no kind": (QWEN3, dict(layer_types=["full_attention", "chunked_attention"]), "layer_types is"),
    "windows that are off": (QWEN3, dict(layer_types=["full_attention", "sliding_attention"]), "layer_types is"),
    "types against the window": (MISTRAL, dict(layer_types=["full_attention"] * 2, sliding_window=4), "layer_types is"),
    "windows without rotary positions": (
        SMOLLM3, dict(use_sliding_window=True, sliding_window=4, no_rope_layers=[1, 0]), "layer_types is"
    ),
    "windows in Llama": (LLAMA, dict(sliding_window=4096), "sliding_window is 4096; tinylm does not support"),
    "kinds of GPT-Neo's layers": (NEO, dict(attention_types=[[["global", "dilated"], 1]]), "attention_types is"),
    "too few layers of GPT-Neo": (NEO, dict(attention_types=[[["global"], 1]]), "attention_types is"),
    "two lists of layers": (NEO, dict(attention_layers=["local", "global"]), "attention_layers is"),
    "scaled by layer": (GPT2, dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is true"),
    "cross attention": (GPT2, dict(add_cross_attention=True), "add_cross_attention is true"),
    "a projected embedding": (OPT, dict(word_embed_proj_dim=16), "word_embed_proj_dim is 16; tinylm supports only 32"),
    "no final norm": (OPT, dict(_remove_final_layer_norm=True), "_remove_final_layer_norm is true"),
    "another feed-forward layer": (STARCODER2, dict(mlp_type="gated"), 'mlp_type is "gated"; tinylm does not'),
    "another norm": (STARCODER2, dict(norm_type="rms"), 'norm_type is "rms"; tinylm does not support this field'),
    "not causal": (LLAMA, dict(is_causal=False), "is_causal is false; tinylm does not support this field"),
    "experts": (MISTRAL, dict(num_local_experts=8), "num_local_experts is 8; tinylm does not support this field"),
    "quantized": (LLAMA, dict(quantization_config={"bits": 4}), 'quantization_config is {"bits": 4}; tinylm does not'),
    "code": (LLAMA, dict(auto_map={"AutoModel": "x.Y"}), "auto_map is"),
    "another model": (LLAMA, dict(model_type="llava"), "model_type is 'llava': known are llama, qwen3, mistral,"),
    "experts everywhere": (LLAMA, dict(model_type="mixtral"), "model_type is 'mixtral': its feed-forward layers are"),
    "Gemma": (LLAMA, dict(model_type="gemma"), "model_type is 'gemma': its norms multiply by 1 + weight"),
    "OLMo": (LLAMA, dict(model_type="olmo"), "model_type is 'olmo': its LayerNorm has no weights"),
    "no model": (LLAMA, dict(model_type=None), "model_type is missing"),
    "no width": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, {}, "hidden_size is missing"),
    "layers that are no number": (LLAMA, dict(num_hidden_layers="two"), 'num_hidden_layers is "two"; tinylm supports'),
    "heads that do not divide": (LLAMA, dict(num_attention_heads=5),
                                 "hidden_size must be divisible by num_attention_heads, got hidden_size=32"),
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
    assert imported(MISTRAL, use_sliding_window=False).sliding_window == 4096  # transformers' Mistral has no such field
    assert imported(MISTRAL, num_key_value_heads=None).kv_heads == 4  # not the default, 8
    window = dict(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert imported(QWEN3, **window).sliding_window == 4
    assert (
        imported(LLAMA, rope_theta=5.0).rope_theta
        == imported(LLAMA, rope_parameters={"rope_theta": 5.0}).rope_theta
        == 5.0
    )
    assert imported(LLAMA, rope_scaling=None, head_dim=None, pretraining_tp=1, something_new=None) == imported(LLAMA)
    assert imported(GPT2, n_inner=None).ff_width == 128 and imported(GPT2, n_inner=50).ff_width == 50
    assert (
        imported(GPT2, activation_function="gelu_pytorch_tanh").activation == imported(GPT2).activation == "gelu_tanh"
    )


def test_versions_4_and_5_of_transformers_spell_positions_differently():
    for kind, old, new in (
        (LLAMA, dict(rope_theta=5e5, rope_scaling=LLAMA3), dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5))),
        (LLAMA, dict(rope_scaling=dict(type="linear", factor=2)),
         dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
        (QWEN2, dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=6)),
         dict(rope_parameters=YARN | dict(rope_theta=1e4))),
        (NEOX, dict(rotary_emb_base=5e4, rotary_pct=0.5),
         dict(rope_parameters=dict(rope_type="default", rope_theta=5e4, partial_rotary_factor=0.5))),
        (NEOX, dict(rotary_emb_base=5e4, rotary_pct=0.5),
         dict(rotary_emb_base=5e4, rotary_pct=0.5, rope_theta=5e4, partial_rotary_factor=0.5)),
        (PHI, dict(partial_rotary_factor=0.5, rope_theta=3.0),
         dict(rope_parameters=dict(rope_theta=3.0, partial_rotary_factor=0.5))),
    ):  # fmt: skip
        assert imported(kind, **old) == imported(kind, **new)
        assert imported(kind, **old) != imported(kind)
    assert imported(LLAMA, torch_dtype="bfloat16") == imported(LLAMA, dtype="bfloat16")


@pytest.mark.parametrize("kind", SHAPES)
def test_a_config_saved_by_transformers_is_imported_like_the_published_one(kind):
    """transformers writes every field, in its newest spelling."""
    theirs = transformers.AutoConfig.for_model(**SHAPES[kind])
    assert import_config(json.loads(theirs.to_json_string(use_diff=False))) == import_config(SHAPES[kind])


def test_new_axes_are_read():
    assert imported(QWEN3, head_dim=128).head_dim == 128 and imported(LLAMA, head_dim=16).d_head == 16
    assert imported(QWEN2).qkv_bias is True and not imported(QWEN2).bias
    scaling = imported(LLAMA, rope_scaling=LLAMA3).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_max_seq_len) == ("llama3", 8.0, 24)  # the context
    windows = dict(use_sliding_window=True, sliding_window=4)
    config = imported(QWEN3, **windows, max_window_layers=1)
    assert (config.layer_kinds, config.sliding_window) == ("LS", 4)
    assert imported(QWEN3, **windows, layer_types=["sliding_attention", "full_attention"]).layer_kinds == "SL"
    assert imported(SMOLLM3, num_hidden_layers=8).layer_pattern == "LLLN"
    assert imported(SMOLLM3, no_rope_layers=[0, 0]).positional_encoding == "none"
    assert imported(SMOLLM3, no_rope_layers=[0, 0], rope_scaling=YARN) == imported(SMOLLM3, no_rope_layers=[0, 0])
    config = imported(NEO)
    assert (config.layer_kinds, config.sliding_window, config.attention_scale) == ("LS", 256, 1.0)
    assert (config.bias, config.biased_qkv) == (True, False)
    assert imported(NEOX).residual == "parallel" and imported(NEOX).rotary_fraction == 0.25
    assert imported(NEOX, use_parallel_residual=False).residual == "sequential"
    assert imported(PHI).residual == "parallel_one_norm" and imported(PHI).head_bias
    assert imported(OPT).norm_placement == "pre" and imported(OPT, do_layer_norm_before=False).norm_placement == "post"
    assert imported(GPT2, scale_attn_weights=False).attention_scale == 1.0
    config = imported(SHAPES["olmo2"])
    assert (config.norm_placement, config.qk_norm, config.qk_norm_width) == ("output", True, "all")


def test_mscale_gives_the_attention_factor():
    """YaRN's: (0.1 mscale ln factor + 1) / (0.1 mscale_all_dim ln factor + 1); mscale alone has no effect."""
    scaling = imported(LLAMA, rope_scaling=YARN | dict(factor=10.0, mscale=2.0, mscale_all_dim=1.0)).rope_scaling
    assert scaling.attention_factor == pytest.approx((1 + 0.2 * 2.302585093) / (1 + 0.1 * 2.302585093))
    assert imported(LLAMA, rope_scaling=YARN | dict(mscale=1.0)) == imported(LLAMA, rope_scaling=YARN)


def test_fields_that_turn_nothing_on_are_ignored():
    nothing = dict(
        pruned_heads={}, torchscript=False, use_bfloat16=False, unsloth_version="2025.1", tokenizer_class="X",
        max_length=20, partial_rotary_factor=1.0, layer_types=["full_attention"] * 2, sliding_window=None,
        new_list=[], new_text="", new_flag=False, new_null=None, is_encoder_decoder=False, chunk_size_feed_forward=0,
        quantization_config={}, auto_map={}, temperature=0.7,
    )  # fmt: skip
    nothing |= dict(  # transformers 4 wrote these into every full config
        num_beams=1, num_beam_groups=1, top_k=50, top_p=1.0, typical_p=1.0, repetition_penalty=1.0, length_penalty=1.0,
        num_return_sequences=1, min_length=0, diversity_penalty=0.0, no_repeat_ngram_size=0, return_dict=True,
        encoder_no_repeat_ngram_size=0, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, bad_words_ids=None,
    )  # fmt: skip
    assert imported(LLAMA, **nothing) == imported(LLAMA)
    assert imported(STARCODER2, mlp_type="default", norm_type="layer_norm") == imported(STARCODER2)


def test_old_configs_of_gpt2_without_a_model_type_are_known_by_their_class():
    old = {name: value for name, value in GPT2.items() if name != "model_type"}
    assert imported(old, architectures=["GPT2LMHeadModel"]) == imported(GPT2)
    with pytest.raises(ConfigError, match="model_type is missing"):
        imported(old, architectures=["GPT2Model"])


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"{CONFIGS} has the published configs")
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_published_configs_are_imported_and_exported_as_the_same_class(name):
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    if values.get("model_type") in ("gemma", "olmo"):
        with pytest.raises(ConfigError, match=f"model_type is '{values['model_type']}': its "):
            import_config(values)
        return
    config, family = import_config(values)
    assert [family.architecture] == values["architectures"]
    assert choose_family(config) is family
    assert import_config({"model_type": family.model_type, **export_config(config, family)}) == (config, family)


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


# --- generation_config.json


def test_options_of_sampling_are_reported_once(capsys):
    check_generation_config({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "eos_token_id": [1, 2]})
    assert capsys.readouterr().err == (
        "tinylm: generation_config.json: temperature 0.6, top_p 0.9: not used; tinylm has its own generation options\n"
    )


def test_what_transformers_writes_itself_says_nothing(capsys):
    for values in (transformers.GenerationConfig().to_dict(), {"_from_model_config": True, "bos_token_id": 1}):
        check_generation_config(values)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", [1]), ("begin_suppress_tokens", [220]), ("forced_bos_token_id", 0), ("new_option", 3),
        ("bad_words_ids", [[1]]), ("forced_eos_token_id", 2), ("sequence_bias", [[[1], 2.0]]), ("guidance_scale", 1.5),
        ("stop_strings", ["x"]), ("watermarking_config", {"bias": 2.0}), ("dola_layers", "high"),
        ("exponential_decay_length_penalty", [1, 2.0]),
    ],
)  # fmt: skip
def test_a_field_that_would_change_the_text_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*; tinylm does not support this field"):
        check_generation_config({"temperature": 1.0, name: value})
    assert name not in OWN_OPTIONS
    with pytest.raises(ConfigError, match="must be an object"):
        check_generation_config([name])
