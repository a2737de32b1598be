"""Hugging Face's architectures that compute what a ModelConfig describes, and their names for fields and weights.

A family is one class of transformers. It fits a config if it has a counterpart of every field that changes logits. The
fields `document_mask`, `zero_init_output`, `activation_checkpointing` and `attention_kernel` concern training only and
have no counterpart. Dropout has a partial one: in Llama's relatives it applies to attention weights only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinylm.errors import ConfigError
from tinylm.interop.fields import Translation, constant, flag, head_dim
from tinylm.interop.layer_types import LAYER_TYPES, NEO_LAYERS, NEO_SCALE, NO_ROPE, WINDOW
from tinylm.interop.names import (
    BIASES,
    GPT2_MODULES,
    GPT2_NAMES,
    LLAMA_MODULES,
    NAMES,
    NEO_MODULES,
    NEO_NAMES,
    NEOX_MODULES,
    NEOX_NAMES,
    OLMO2_MODULES,
    OPT_MODULES,
    OPT_NAMES,
    PHI_MODULES,
    PHI_NAMES,
    STARCODER2_MODULES,
    STARCODER2_NAMES,
)
from tinylm.interop.rope import rope
from tinylm.model import ModelConfig


@dataclass(frozen=True)
class Rule:
    """A condition on a field that depends on other fields, with the value that always fits."""

    holds: Callable[[ModelConfig], bool]
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of transformers.

    Attributes:
        model_type: its name in config.json
        architecture: its class
        fits: our field -> the values that it supports, or a rule; a field left out may have any value
        activations: the values of our `activation` that an import may have
        modules: our module -> theirs
        names: our field -> theirs
        translations: further fields of config.json that change logits
        defaults: transformers' defaults for fields missing from a config.json
        harmless: field -> a value that changes nothing
        biases: our fields of biases that it always or never has; missing biases are written as zeros
        transposed: whether the matrices of blocks are stored as (inputs, outputs)
        interleaved: whether a joint matrix has queries, keys and values of the first head, then of the second, ...
        spare_positions: unused rows at the start of the position embedding
        whole_heads: whether num_heads must divide d_model
    """

    model_type: str
    architecture: str
    fits: Mapping[str, tuple[Any, ...] | Rule]
    activations: tuple[str, ...]
    modules: Mapping[str, str]
    names: Mapping[str, str | tuple[str, ...]]
    translations: tuple[Translation, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    harmless: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, bool | None] = field(default_factory=dict)
    transposed: bool = False
    interleaved: bool = False
    spare_positions: int = 0

    def misfits(self, config: ModelConfig) -> list[str]:
        """The fields of a config without a counterpart."""
        plain = plain_form(config)
        return [
            name for name, fitting in self.fits.items()
            if not (fitting.holds(plain) if isinstance(fitting, Rule) else getattr(plain, name) in fitting)
        ]  # fmt: skip

    def values(self, name: str) -> tuple[Any, ...]:
        """Values of a field that fit."""
        fitting = self.fits[name]
        return (fitting.value,) if isinstance(fitting, Rule) else fitting

    def with_biases(self, config: ModelConfig) -> ModelConfig:
        """The config with the biases that the family always has."""
        return dataclasses.replace(config, **self.biases)


def plain_form(config: ModelConfig) -> ModelConfig:
    """An equivalent config with null wherever a field has its usual value."""
    changes: dict[str, Any] = {}
    if config.kv_heads == config.num_heads:
        changes["num_kv_heads"] = None
    if config.head_dim * config.num_heads == config.d_model:
        changes["d_head"] = None
    if config.attention_scale == config.head_dim**-0.5:
        changes["attention_scale"] = None
    kinds = set(config.layer_kinds)
    if kinds in ({"S"}, {"L"}):
        changes["layer_pattern"] = None
        changes["sliding_window"] = config.sliding_window if kinds == {"S"} else None
    elif "S" not in kinds:  # the first letters of a longer pattern
        changes |= {"layer_pattern": config.layer_kinds, "sliding_window": None}
    return dataclasses.replace(config, **changes)


def _pattern(letters: str) -> Rule:
    """Layers of these kinds in any order, or layers all alike."""
    return Rule(lambda config: config.layer_pattern is None or set(config.layer_kinds) <= set(letters))


WHOLE_HEADS = Rule(lambda config: config.d_model % config.num_heads == 0)
SAME_BIAS = Rule(lambda config: config.biased_qkv == config.bias)
UNGATED = ("gelu", "gelu_tanh", "relu", "relu2")
NO_BIAS = {"bias": (False,), "qkv_bias": Rule(lambda config: not config.qkv_bias)}
NO_WINDOW = {"sliding_window": (None,)}
PLAIN = {  # options that few families have
    "norm_placement": ("pre",), "residual": ("sequential",), "qk_norm": (False,), "qk_norm_width": ("head",),
    "head_bias": (False,), "rotary_fraction": (1.0,), "layer_pattern": (None,), "attention_scale": (None,),
}  # fmt: skip
ROTARY = PLAIN | {"positional_encoding": ("rotary",)}
LLAMA = ROTARY | {"norm": ("rmsnorm",), "activation": ("swiglu",)}
ROTARY_GPT = ROTARY | {"norm": ("layernorm",), "activation": UNGATED}
GPT = ROTARY_GPT | {"positional_encoding": ("learned",), "num_kv_heads": (None,), "d_head": (None,)}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "attention_dropout": 0.0}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}
NO_DROPOUTS = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}
SILU = ("swiglu",)
ALWAYS = {"bias": True, "qkv_bias": None}

_FAMILIES = [  # in order of preference: the first that fits is chosen
    Family(
        model_type="llama", architecture="LlamaForCausalLM",
        fits=LLAMA | NO_WINDOW | {"d_head": WHOLE_HEADS, "qkv_bias": SAME_BIAS}, activations=SILU,
        modules=LLAMA_MODULES, names=NAMES | BIASES, translations=(head_dim(), rope()),
        defaults=DEFAULTS | NO_BIASES,
    ),
    Family(
        model_type="qwen3", architecture="Qwen3ForCausalLM",
        fits=LLAMA | NO_BIAS | {"qk_norm": (True,), "layer_pattern": _pattern("SL")}, activations=SILU,
        modules=LLAMA_MODULES, names=NAMES,
        translations=(head_dim(), rope(), LAYER_TYPES, constant(attention_bias=False)),
        defaults=DEFAULTS
        | {"num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False, "sliding_window": 4096},
    ),
    Family(
        model_type="mistral", architecture="MistralForCausalLM", fits=LLAMA | NO_BIAS, activations=SILU,
        modules=LLAMA_MODULES, names=NAMES, translations=(head_dim(), rope(), WINDOW),
        defaults=DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        model_type="qwen2", architecture="Qwen2ForCausalLM",
        fits=LLAMA | {"bias": (False,), "qkv_bias": (True,), "layer_pattern": _pattern("SL")}, activations=SILU,
        modules=LLAMA_MODULES, names=NAMES, translations=(head_dim(always=False), rope(), LAYER_TYPES),
        defaults=DEFAULTS | {"num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096},
    ),
    Family(
        model_type="gpt_neo", architecture="GPTNeoForCausalLM",
        fits=GPT | {
            "qkv_bias": Rule(lambda config: not config.biased_qkv, False), "layer_pattern": _pattern("SL"),
            "attention_scale": Rule(lambda config: (config.attention_scale or config.head_dim**-0.5) == 1.0, 1.0),
        },
        activations=UNGATED, modules=NEO_MODULES, names=NEO_NAMES, translations=(NEO_LAYERS, NEO_SCALE),
        defaults={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        | {"attention_dropout": 0.0, "resid_dropout": 0.0, "embed_dropout": 0.0},
        harmless={"classifier_dropout": 0.1}, biases={"bias": True, "qkv_bias": False},
    ),
    Family(
        model_type="opt", architecture="OPTForCausalLM",
        fits=GPT | NO_WINDOW | {
            "norm_placement": ("pre", "post"), "norm_eps": (1e-5,),
            "activation": Rule(  # other models with pre-norm are GPT-2
                lambda config: config.activation in (UNGATED if config.norm_placement == "post" else ("relu",)), "relu"
            ),
        },
        activations=UNGATED, modules=OPT_MODULES, names=OPT_NAMES,
        translations=(
            flag("do_layer_norm_before", "norm_placement", "pre", "post"),
            constant(layer_norm_elementwise_affine=True, _remove_final_layer_norm=False),
            Translation(lambda config: {"word_embed_proj_dim": config.d_model}),
        ),
        defaults={"activation_function": "relu", "tie_word_embeddings": True, "enable_bias": True}
        | {"dropout": 0.1, "attention_dropout": 0.0, "do_layer_norm_before": True},
        harmless={"activation_dropout": 0.0, "layerdrop": 0.0}, biases=ALWAYS, spare_positions=2,
    ),
    Family(
        model_type="gpt2", architecture="GPT2LMHeadModel",
        fits=GPT | NO_WINDOW | {"attention_scale": (None, 1.0)}, activations=UNGATED,
        modules=GPT2_MODULES, names=GPT2_NAMES,
        translations=(
            flag("scale_attn_weights", "attention_scale", None, 1.0),
            constant(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
        ),
        defaults={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "scale_attn_weights": True},
        biases=ALWAYS, transposed=True,
    ),
    Family(
        model_type="starcoder2", architecture="Starcoder2ForCausalLM", fits=ROTARY_GPT, activations=UNGATED,
        modules=STARCODER2_MODULES, names=NAMES | STARCODER2_NAMES,
        translations=(head_dim(always=False), rope(), WINDOW),
        defaults=NO_DROPOUTS
        | {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "use_bias": True}
        | {"tie_word_embeddings": True, "num_key_value_heads": 2, "sliding_window": None},
        harmless={"mlp_type": "default", "norm_type": "layer_norm"}, biases=ALWAYS,
    ),
    Family(
        model_type="arcee", architecture="ArceeForCausalLM",
        fits=ROTARY | NO_WINDOW
        | {"norm": ("rmsnorm",), "activation": UNGATED, "d_head": WHOLE_HEADS, "qkv_bias": SAME_BIAS},
        activations=UNGATED, modules=LLAMA_MODULES, names=NAMES | BIASES, translations=(head_dim(), rope()),
        defaults=DEFAULTS | NO_BIASES | {"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    ),
    Family(
        model_type="smollm3", architecture="SmolLM3ForCausalLM",
        fits=LLAMA
        | {"positional_encoding": ("rotary", "none"), "qkv_bias": SAME_BIAS, "layer_pattern": _pattern("SLN")},
        activations=SILU, modules=LLAMA_MODULES, names=NAMES | BIASES,
        translations=(head_dim(always=False), rope(theta=2e6), NO_ROPE),
        defaults=DEFAULTS | NO_BIASES
        | {"num_key_value_heads": 4, "tie_word_embeddings": True}
        | {"use_sliding_window": False, "sliding_window": None},
    ),
    Family(
        model_type="gpt_neox", architecture="GPTNeoXForCausalLM",
        fits={name: values for name, values in ROTARY_GPT.items() if name != "rotary_fraction"} | NO_WINDOW
        | {"num_kv_heads": (None,), "d_head": (None,), "residual": ("sequential", "parallel")},
        activations=UNGATED, modules=NEOX_MODULES, names=NEOX_NAMES,
        translations=(
            rope(fraction=0.25, names=("rotary_emb_base", "rotary_pct")), constant(attention_bias=True),
            flag("use_parallel_residual", "residual", "parallel", "sequential"),
        ),
        defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": False}
        | {"attention_dropout": 0.0, "hidden_dropout": 0.0, "use_parallel_residual": True},
        harmless={"classifier_dropout": 0.1}, biases=ALWAYS, interleaved=True,
    ),
    Family(
        model_type="phi", architecture="PhiForCausalLM",
        fits={name: values for name, values in ROTARY_GPT.items() if name not in ("rotary_fraction", "head_bias")}
        | NO_WINDOW | {"residual": ("parallel_one_norm",)},
        activations=UNGATED, modules=PHI_MODULES, names=PHI_NAMES,
        translations=(
            head_dim(always=False), rope(fraction=0.5, names=("rope_theta", "partial_rotary_factor")),
            constant(qk_layernorm=False),
        ),
        defaults={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "tie_word_embeddings": False}
        | {"attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        biases=ALWAYS | {"head_bias": True},
    ),
    Family(
        model_type="olmo2", architecture="Olmo2ForCausalLM",
        fits=LLAMA | NO_BIAS | NO_WINDOW
        | {"norm_placement": ("output",), "qk_norm": (True,), "qk_norm_width": ("all",)},
        activations=SILU, modules=OLMO2_MODULES, names=NAMES,
        translations=(head_dim(always=False), rope(), constant(attention_bias=False)),
        defaults=DEFAULTS | {"rms_norm_eps": 1e-5},
    ),
]  # fmt: skip
FAMILIES = {family.model_type: family for family in _FAMILIES}


# --- the choice of a family


def choose_family(config: ModelConfig) -> Family:
    """The first family that fits a config; if there is none, the ConfigError suggests values that would fit."""
    if config.sliding_window == 1:
        raise ConfigError(
            "sliding_window=1: no counterpart in Hugging Face's models, whose cache keeps window - 1 tokens"
        )
    for name, part in config.parts.items():
        raise ConfigError(f"{name}: the plug-in {part} has no counterpart in Hugging Face's models")
    values = config.to_dict()
    misfits = {family.model_type: family.misfits(config) for family in _FAMILIES}
    fewest = min(map(len, misfits.values()))
    nearest = [family for family in _FAMILIES if len(misfits[family.model_type]) == fewest]
    if not fewest:
        return nearest[0]
    for name in values:
        if all(name in each for each in misfits.values()):
            known = dict.fromkeys(value for family in _FAMILIES for value in family.values(name))
            raise ConfigError(f"{name}={values[name]}: no counterpart in Hugging Face's models; use {_or(known)}")
    names = dict.fromkeys(name for family in nearest for name in misfits[family.model_type])
    given = " and ".join(f"{name}={values[name]}" for name in names)
    remedies = _remedies(config, nearest)
    problem = f"{given}: no counterpart in Hugging Face's models with the other fields"
    raise ConfigError("; ".join([problem, ", ".join(remedies)] if remedies else [problem]))


def _remedies(config: ModelConfig, families: Iterable[Family]) -> list[str]:
    """Changes of a config that make a family fit, each with the first such family."""
    remedies = {}
    for family in families:
        names = family.misfits(config)
        remedy = " and ".join(f"{name}={_or(family.values(name))}" for name in names)
        try:
            fits = not family.misfits(dataclasses.replace(config, **{name: family.values(name)[0] for name in names}))
        except ConfigError:  # the remedy needs more than these fields
            fits = True
        if fits:
            remedies.setdefault(remedy, f"{remedy} would fit {family.architecture}")
    return list(remedies.values())


def _or(values: Iterable[Any]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)
