"""The family of a config: each row of docs/interop.md, and for any config a family or a helpful refusal."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings

from tests.interop.tables import EXPORTS, REFUSALS, SHAPE
from tests.strategies import model_configs
from tinylm.errors import ConfigError
from tinylm.interop.families import choose_family
from tinylm.model import PRESETS, ModelConfig, preset


@pytest.mark.parametrize(("changes", "architecture"), EXPORTS.values(), ids=EXPORTS)
def test_each_documented_config_has_its_documented_class(changes, architecture):
    assert choose_family(ModelConfig.from_dict(SHAPE | changes)).architecture == architecture


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS)
def test_each_documented_refusal_has_its_documented_message(changes, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        choose_family(ModelConfig.from_dict(SHAPE | changes))


def test_all_presets_and_all_configs_have_a_counterpart():
    for name in PRESETS:
        expected = "gpt2" if name == "gpt2" else "qwen3"
        assert choose_family(preset(name, vocab_size=65)).model_type == expected
    for path in (*Path("configs").glob("*.yaml"), *Path("configs/examples").glob("*.yaml")):
        model = yaml.safe_load(path.read_text())["model"]
        assert ("network" in model) != ("init_from" in model)  # which uses another model's config
        config = ModelConfig(vocab_size=65, **model.get("network", {}))
        if config.parts:
            with pytest.raises(ConfigError, match=r"the plug-in .* has no counterpart in Hugging Face's models"):
                choose_family(config)
        else:
            choose_family(config)


@settings(max_examples=100, deadline=None)
@given(model_configs())
def test_a_refusal_names_fields_of_the_config_and_values_that_fit(config):
    """With the values that a refusal suggests, there is a family."""
    try:
        choose_family(config)
    except ConfigError as error:
        given, _, remedy = str(error).partition(": no counterpart")
        fields = dict(re.findall(r"(\w+)=(\S+)", given))
        assert fields
        for name, value in fields.items():
            found = config.kv_heads if name == "num_kv_heads" else getattr(config, name)
            assert str(found) == value
        for alternative in remedy.split(", ") if "would fit" in remedy else ():
            values = dict(re.findall(r"(\w+)=(\S+)", alternative))
            assert values and values.keys() <= fields.keys()
            read = {"1e-05": 1e-5}
            values = {name: read.get(value, yaml.safe_load(value)) for name, value in values.items()}
            try:
                changed = ModelConfig.from_dict(config.to_dict() | values)
            except ConfigError:
                continue  # rotary positions need an even head_dim
            choose_family(changed)


EQUIVALENT = [  # two spellings of one function
    (dict(d_head=8), {}),
    (dict(qkv_bias=False), {}),
    (dict(qk_norm=False, attention_scale=8**-0.5), dict(qk_norm=False)),
    (dict(layer_pattern="L"), {}),
    (dict(layer_pattern="SS", sliding_window=5), dict(sliding_window=5)),
    (dict(layer_pattern="LLN"), {}),  # of two layers, none is the third
    (dict(qk_norm=False, layer_pattern="N"), dict(qk_norm=False, positional_encoding="none")),
]


@pytest.mark.parametrize(("changes", "plain"), EQUIVALENT)
def test_two_spellings_of_one_function_have_the_same_class(changes, plain):
    assert choose_family(ModelConfig(**SHAPE | changes)) is choose_family(ModelConfig(**SHAPE | plain))


def test_heads_that_do_not_divide_the_width_do_not_become_llama():
    """transformers refuses such a LlamaConfig, and computes it as Mistral."""
    config = ModelConfig(**SHAPE | dict(qk_norm=False, num_heads=5, d_head=8))
    assert choose_family(config).model_type == "mistral"
