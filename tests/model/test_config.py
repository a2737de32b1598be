"""ModelConfig: its error messages, and its parameter and FLOP counts against published and measured numbers."""

import dataclasses
import json

import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from tests.strategies import model_configs, random_ids
from tinylm.checks import FOREIGN_NAMES
from tinylm.errors import ConfigError
from tinylm.model import PRESETS, ModelConfig, TransformerLM, flops_per_token, parameter_count, preset

few = settings(max_examples=40, deadline=None)

REFUSED = [
    (dict(num_layers=-1), r"^num_layers must be at least 1, got -1$"),
    (dict(num_layers=0), r"^num_layers must be at least 1, got 0$"),
    (dict(vocab_size=0), r"^vocab_size must be at least 1, got 0$"),
    (dict(d_model=-8), r"^d_model must be at least 1, got -8$"),
    (dict(num_heads=0), r"^num_heads must be at least 1, got 0$"),
    (dict(num_kv_heads=0), r"^num_kv_heads must be at least 1, got 0$"),
    (dict(d_ff=0), r"^d_ff must be at least 1, got 0$"),
    (dict(max_seq_len=0), r"^max_seq_len must be at least 1, got 0$"),
    (dict(sliding_window=0), r"^sliding_window must be at least 1, got 0$"),
    (dict(d_model=100, num_heads=3), r"^d_model must be divisible by num_heads, got d_model=100 and num_heads=3$"),
    (
        dict(num_heads=4, num_kv_heads=3),
        r"^num_heads must be divisible by num_kv_heads, got num_heads=4 and num_kv_heads=3$",
    ),
    (dict(num_heads=2, num_kv_heads=4), r"got num_heads=2 and num_kv_heads=4$"),
    (dict(d_model=12, num_heads=4), r"^rotary positions need an even head_dim, got d_model=12 / num_heads=4 = 3$"),
    (dict(rope_theta=0.0), r"^rope_theta must be positive, got 0\.0$"),
    (dict(rope_theta=float("nan")), r"^rope_theta must be positive, got nan$"),
    (
        dict(positional_encoding="sinusoidal", d_model=7, num_heads=1),
        r"^sinusoidal positions need an even d_model, got 7$",
    ),
    (dict(dropout=1.0), r"^dropout must be in \[0, 1\), got 1\.0$"),
    (dict(dropout=-0.1), r"^dropout must be in \[0, 1\), got -0\.1$"),
    (dict(dropout=float("nan")), r"^dropout must be in \[0, 1\), got nan$"),
    (dict(norm_eps=0), r"^norm_eps must be positive, got 0\.0$"),
    (dict(bias="yes"), r"^bias must be bool, got 'yes'$"),
    (dict(qk_norm=1), r"^qk_norm must be bool, got 1$"),
    (dict(num_layers=2.5), r"^num_layers must be int, got 2\.5$"),
    (dict(num_layers=2.0), r"^num_layers must be int, got 2\.0$"),
    (dict(num_layers=True), r"^num_layers must be int, got True$"),
    (dict(num_layers=None), r"^num_layers must be int, got None$"),
    (dict(d_ff="64"), r"^d_ff must be int or null, got '64'$"),
    (dict(dropout="0.1"), r"^dropout must be float, got '0\.1'$"),
    (dict(dropout=True), r"^dropout must be float, got True$"),
    (
        dict(activation="gelu_tan"),
        r"^activation must be one of swiglu, gelu, gelu_tanh, relu, relu2, got 'gelu_tan', did you mean 'gelu_tanh'\?$",
    ),
    (dict(norm="batchnorm"), r"^norm must be one of rmsnorm, layernorm, got 'batchnorm'"),
    (dict(norm_placement=None), r"^norm_placement must be one of pre, post, output, got None"),
    (dict(positional_encoding="alibi"), r"^positional_encoding must be one of rotary, learned, sinusoidal, none, got"),
    (dict(attention_kernel="flash"), r"^attention_kernel must be one of fused, plain, got 'flash'"),
    (dict(d_head=0), r"^d_head must be at least 1, got 0$"),
    (dict(d_head=3), r"^rotary positions need an even head_dim, got d_head = 3$"),
    (dict(qkv_bias=1), r"^qkv_bias must be bool or null, got 1$"),
    (dict(rotary_fraction=0.0), r"^rotary_fraction must be above 0 and at most 1, got 0\.0$"),
    (dict(rotary_fraction=1.5), r"^rotary_fraction must be above 0 and at most 1, got 1\.5$"),
    (dict(rotary_fraction=0.08), r"^rotary_fraction must leave an even number to rotate, got 0\.08 of 64 = 5$"),
    (dict(rotary_fraction=0.01), r"^rotary_fraction must leave an even number to rotate, got 0\.01 of 64 = 0$"),
    (
        dict(rotary_fraction=0.5, positional_encoding="learned"),
        r"^rotary_fraction needs positional_encoding=rotary, got learned$",
    ),
    (
        dict(rope_scaling=dict(kind="linear", factor=2.0), positional_encoding="none"),
        r"^rope_scaling needs positional_encoding=rotary, got none$",
    ),
    (dict(residual="parallel", norm_placement="post"), r"^residual=parallel needs norm_placement=pre, got post$"),
    (
        dict(residual="parallel_one_norm", norm_placement="output"),
        r"^residual=parallel_one_norm needs norm_placement=pre, got output$",
    ),
    (dict(qk_norm=False, qk_norm_width="all"), r"^qk_norm_width=all needs qk_norm$"),
    (dict(layer_pattern=""), r"^layer_pattern must consist of the letters S, L and N, got ''$"),
    (dict(layer_pattern="LGL"), r"^layer_pattern must consist of the letters S, L and N, got 'LGL'$"),
    (dict(layer_pattern="LS"), r"^layer_pattern 'LS' has an S; set sliding_window$"),
    (dict(layer_pattern="LN", sliding_window=4), r"^sliding_window needs an S in layer_pattern, got 'LN'$"),
    (dict(layer_pattern="LN", positional_encoding="none"), r"^layer_pattern: N needs positional_encoding=rotary$"),
    (dict(attention_scale=0.0), r"^attention_scale must be positive, got 0\.0$"),
    (dict(rope_scaling="linear"), r"^rope_scaling must be RopeScaling or null, got 'linear'$"),
    (dict(rope_scaling={}), r"^rope_scaling\.kind: missing$"),
    (dict(rope_scaling=dict(kind="linear")), r"^rope_scaling\.factor: missing$"),
    (
        dict(rope_scaling=dict(kind="ntk", factor=2.0)),
        r"^rope_scaling\.kind must be one of linear, llama3, yarn, got 'ntk'",
    ),
    (
        dict(rope_scaling=dict(rope_type="linear")),
        r"^rope_scaling\.rope_type: no such field .*, did you mean 'kind'\?$",
    ),
    (dict(rope_scaling=dict(kind="linear", factor=0.5)), r"^rope_scaling\.factor must be at least 1, got 0\.5$"),
    (dict(rope_scaling=dict(kind="linear", factor="2")), r"^rope_scaling\.factor must be float, got '2'$"),
    (
        dict(rope_scaling=dict(kind="llama3", factor=2, low_freq_factor=4)),
        r"^rope_scaling\.low_freq_factor must be positive and less than high_freq_factor, got 4\.0 and 4\.0$",
    ),
    (
        dict(rope_scaling=dict(kind="yarn", factor=2, beta_slow=40)),
        r"^rope_scaling\.beta_slow must be positive and less than beta_fast, got 40\.0 and 32\.0$",
    ),
    (
        dict(rope_scaling=dict(kind="yarn", factor=2, original_max_seq_len=0)),
        r"^rope_scaling\.original_max_seq_len must be at least 1, got 0$",
    ),
    (
        dict(rope_scaling=dict(kind="yarn", factor=2, attention_factor=0)),
        r"^rope_scaling\.attention_factor must be positive, got 0\.0$",
    ),
    (dict(rope_scaling=dict(kind="yarn", factor=2), rope_theta=1), r"^yarn needs a rope_theta above 1, got 1\.0$"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value) if type(value) is dict else "")
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        ModelConfig(**{"vocab_size": 10, **changes})
    assert error.value.exit_code == 2
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("n_head", "num_heads"),
        ("block_size", "max_seq_len"),
        ("n_layer", "num_layers"),
        ("hidden_size", "d_model"),
        ("head_dim", "d_head"),
        ("partial_rotary_factor", "rotary_fraction"),
        ("num_layer", "num_layers"),  # a typo, not another project's name
    ],
)
def test_foreign_names_are_refused_with_a_suggestion(name, meant):
    message = rf"^{name}: no such field of ModelConfig, did you mean '{meant}'\?$"
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({"vocab_size": 10, name: 4})
    with pytest.raises(ConfigError, match=message):
        preset("tiny", vocab_size=10, **{name: 4})


def test_no_foreign_name_is_a_field():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert not fields & FOREIGN_NAMES.keys()


def test_an_unknown_name_unlike_any_field_gets_no_suggestion():
    with pytest.raises(ConfigError, match=r"^zzz: no such field of ModelConfig$"):
        ModelConfig.from_dict({"vocab_size": 10, "zzz": 1})


def test_a_missing_vocab_size_is_refused():
    with pytest.raises(ConfigError, match=r"^vocab_size: missing"):
        ModelConfig.from_dict({"d_model": 64})


def test_an_unknown_preset_is_refused_with_a_list():
    message = r"^smal: no such preset, known are tiny, small, medium, base, big, large, gpt2, did you mean 'small'\?$"
    with pytest.raises(ConfigError, match=message):
        preset("smal", vocab_size=10)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(vocab_size=10).d_model = 8


@few
@given(model_configs())
def test_from_dict_inverts_to_dict_even_through_json(config):
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_integers_are_accepted_as_floats():
    config = ModelConfig(vocab_size=10, dropout=0, rope_theta=10000)
    assert (type(config.dropout), type(config.rope_theta)) == (float, float)
    assert config == ModelConfig(vocab_size=10, dropout=0.0, rope_theta=10000.0)


@pytest.mark.parametrize(
    ("activation", "d_model", "width"),
    [("gelu", 96, 384), ("swiglu", 96, 256), ("swiglu", 72, 192), ("swiglu", 73, 256), ("swiglu", 768, 2048)],
)
def test_default_feedforward_width(activation, d_model, width):
    """4 D, or 8/3 D for swiglu, rounded up to a multiple of 64: 8/3 * 73 = 194.7 -> 256."""
    assert ModelConfig(vocab_size=10, d_model=d_model, num_heads=1, activation=activation,
                       positional_encoding="none").ff_width == width  # fmt: skip


LLAMA = dict(num_heads=32, qk_norm=False, max_seq_len=8192)
NEOX = dict(norm="layernorm", activation="gelu", qk_norm=False, bias=True, tie_embeddings=False, rotary_fraction=0.5)
PUBLISHED = {
    "GPT-2": (preset("gpt2", vocab_size=50257), 124_439_808),
    "GPT-2 medium": (preset("gpt2", vocab_size=50257, d_model=1024, num_layers=24, num_heads=16), 354_823_168),
    "GPT-2 XL": (preset("gpt2", vocab_size=50257, d_model=1600, num_layers=48, num_heads=25), 1_557_611_200),
    "Llama 2 7B": (
        ModelConfig(**LLAMA, vocab_size=32000, d_model=4096, num_layers=32, d_ff=11008, tie_embeddings=False),
        6_738_415_616,
    ),
    "Mistral 7B": (
        ModelConfig(
            **LLAMA, vocab_size=32000, d_model=4096, num_layers=32, num_kv_heads=8, d_ff=14336, tie_embeddings=False
        ),
        7_241_732_096,
    ),
    "Llama 3.2 1B": (
        ModelConfig(**LLAMA, vocab_size=128256, d_model=2048, num_layers=16, num_kv_heads=8, d_ff=8192),
        1_235_814_400,
    ),
    "Qwen2.5 0.5B": (
        ModelConfig(vocab_size=151936, d_model=896, num_layers=24, num_heads=14, num_kv_heads=2, d_ff=4864,
                    qk_norm=False, qkv_bias=True),
        494_032_768,
    ),
    "Qwen3 0.6B": (
        ModelConfig(vocab_size=151936, d_model=1024, num_layers=28, num_heads=16, num_kv_heads=8, d_ff=3072,
                    d_head=128),
        596_049_920,
    ),
    "OLMo 2 1B": (
        ModelConfig(vocab_size=100352, d_model=2048, num_layers=16, num_heads=16, d_ff=8192, norm_placement="output",
                    qk_norm_width="all", tie_embeddings=False),
        1_484_916_736,
    ),
    "Pythia 160M": (
        ModelConfig(vocab_size=50304, d_model=768, num_layers=12, num_heads=12, **NEOX, residual="parallel"),
        162_322_944,
    ),
    "phi-1.5": (
        ModelConfig(vocab_size=51200, d_model=2048, num_layers=24, num_heads=32, **NEOX, residual="parallel_one_norm",
                    head_bias=True),
        1_418_270_720,
    ),
    "GPT-Neo 125M": (
        ModelConfig(vocab_size=50257, d_model=768, num_layers=12, num_heads=12, max_seq_len=2048, norm="layernorm",
                    positional_encoding="learned", activation="gelu_tanh", qk_norm=False, bias=True, qkv_bias=False),
        125_198_592,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_count_matches_published_models(config, published):
    assert parameter_count(config) == published


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_run(name):
    """With one layer, since all are alike."""
    config = preset(name, vocab_size=50, num_layers=1)
    model = TransformerLM(config)
    assert model(random_ids(config, batch_size=1, length=5)).shape == (1, 5, 50)


VARIANTS = {
    "modern": dict(),
    "gpt2": dict(positional_encoding="learned", norm="layernorm", activation="gelu_tanh", qk_norm=False, bias=True),
    "grouped-untied": dict(num_kv_heads=2, tie_embeddings=False, d_ff=20),
    "wide heads": dict(d_head=12, qkv_bias=True, head_bias=True, residual="parallel_one_norm"),
    "output norms": dict(norm_placement="output", qk_norm_width="all", layer_pattern="LN"),
    "post-norm": dict(norm_placement="post", positional_encoding="sinusoidal", activation="relu2"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_per_token_match_pytorchs_counter(variant):
    """Over one forward and backward pass.

    The convention also counts 6 operations for each norm weight and bias, which take part in no matrix product.
    """
    B, T = 3, 16
    config = ModelConfig(vocab_size=23, d_model=32, num_layers=2, attention_kernel="plain", max_seq_len=T,
                         **VARIANTS[variant])  # fmt: skip
    model, ids = TransformerLM(config), random_ids(config, batch_size=B)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    vectors = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert flops_per_token(config) * B * T == counter.get_total_flops() + 6 * vectors * B * T


def test_flops_of_a_sliding_window_equal_those_of_a_short_context():
    """Without learned positions, whose table would be shorter too."""
    config = ModelConfig(vocab_size=23, d_model=32, max_seq_len=64)
    short = dataclasses.replace(config, max_seq_len=16)
    assert flops_per_token(dataclasses.replace(config, sliding_window=16)) == flops_per_token(short)
    assert flops_per_token(dataclasses.replace(config, sliding_window=100)) == flops_per_token(config)


def test_flops_of_a_pattern_are_the_mean_of_its_layers():
    config = ModelConfig(vocab_size=23, d_model=32, max_seq_len=64, num_layers=4)
    window = dataclasses.replace(config, sliding_window=16)
    half = dataclasses.replace(window, layer_pattern="LS")
    assert half.layer_kinds == "LSLS"
    assert flops_per_token(half) == (flops_per_token(config) + flops_per_token(window)) / 2


def test_a_stored_config_without_the_newer_fields_is_the_default():
    """Old checkpoints lack them."""
    old = ("vocab_size", "d_model", "num_heads", "bias", "sliding_window")
    values = {name: value for name, value in ModelConfig(vocab_size=9).to_dict().items() if name in old}
    assert ModelConfig.from_dict(values) == ModelConfig(vocab_size=9)
