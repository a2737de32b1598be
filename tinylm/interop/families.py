"""Hugging Face's architectures that compute what a ModelConfig describes, and their names for fields and weights.

A family is one class of transformers. It fits a config if it has a counterpart of every field that changes logits. The
fields `document_mask`, `zero_init_output`, `activation_checkpointing` and `attention_kernel` concern training only and
have none. Dropout has a partial one: outside GPT-2, Starcoder2 and OPT it applies to attention weights alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig

# --- names of fields: ours -> theirs; several names are fields that must be equal

NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings",
    "activation": "hidden_act", "dropout": "attention_dropout", "rope_theta": "rope_theta",
}  # fmt: skip
BIASES = {"bias": ("attention_bias", "mlp_bias")}
WINDOW = {"sliding_window": "sliding_window"}
STARCODER2_NAMES = {
    "norm_eps": "norm_epsilon", "dropout": ("attention_dropout", "residual_dropout", "embedding_dropout"),
    "bias": "use_bias",
}  # fmt: skip
GPT2_NAMES = {
    "vocab_size": "vocab_size", "d_model": "n_embd", "num_layers": "n_layer", "num_heads": "n_head", "d_ff": "n_inner",
    "max_seq_len": "n_positions", "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings",
    "activation": "activation_function", "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}  # fmt: skip
OPT_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "d_ff": "ffn_dim", "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings", "activation": "activation_function",
    "dropout": ("dropout", "attention_dropout"), "bias": "enable_bias",
}  # fmt: skip

# --- names of modules: ours -> theirs; several of ours with one name are concatenated, in our order


def _modules(blocks: str, block: Mapping[str, str], **others: str) -> dict[str, str]:
    """A table of names. `block` has those within a block, relative to `blocks`."""
    return {f"blocks.{{}}.{ours}": f"{blocks}.{{}}.{theirs}" for ours, theirs in block.items()} | others


LLAMA_BLOCK = {
    "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "feedforward.gate": "mlp.gate_proj", "feedforward.input": "mlp.up_proj", "feedforward.output": "mlp.down_proj",
}  # fmt: skip
STARCODER2_BLOCK = LLAMA_BLOCK | {"feedforward.input": "mlp.c_fc", "feedforward.output": "mlp.c_proj"}
GPT2_BLOCK = {
    "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    "attention.query": "attn.c_attn", "attention.key": "attn.c_attn", "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj", "feedforward.input": "mlp.c_fc", "feedforward.output": "mlp.c_proj",
}  # fmt: skip
OPT_BLOCK = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj", "attention_norm": "self_attn_layer_norm",
    "feedforward.input": "fc1", "feedforward.output": "fc2", "feedforward_norm": "final_layer_norm",
}  # fmt: skip
OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
LLAMA_MODULES = _modules("model.layers", LLAMA_BLOCK, **OUTER)
STARCODER2_MODULES = _modules("model.layers", STARCODER2_BLOCK, **OUTER)
GPT2_MODULES = _modules(
    "transformer.h", GPT2_BLOCK, embedding="transformer.wte", positions="transformer.wpe",
    final_norm="transformer.ln_f", head="lm_head",
)  # fmt: skip
OPT_MODULES = _modules(
    "model.decoder.layers", OPT_BLOCK, embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions", head="lm_head",
)  # fmt: skip

# --- families


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of transformers.

    Attributes:
        model_type: its name in config.json
        architecture: its class
        fits: our field -> the values that it supports; a field left out may have any value
        modules: our module -> theirs
        names: our field -> theirs
        extra: further fields of config.json that change logits
        defaults: transformers' defaults for fields missing from a config.json
        biased: whether norms and linear layers always have biases; zeros stand in for missing ones
        transposed: whether the matrices of blocks are stored as (inputs, outputs)
        spare_positions: unused rows at the start of the position embedding
    """

    model_type: str
    architecture: str
    fits: Mapping[str, tuple[Any, ...]]
    modules: Mapping[str, str]
    names: Mapping[str, str | tuple[str, ...]]
    extra: Callable[[ModelConfig], dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biased: bool = False
    transposed: bool = False
    spare_positions: int = 0


def _head_dim(config: ModelConfig) -> dict[str, Any]:
    return {"head_dim": config.head_dim}


def _windows(config: ModelConfig) -> dict[str, Any]:
    sliding = config.sliding_window is not None
    kind = "sliding_attention" if sliding else "full_attention"
    return {"use_sliding_window": sliding, "layer_types": [kind] * config.num_layers}


UNGATED = ("gelu", "gelu_tanh", "relu", "relu2")
ROTARY = {"positional_encoding": ("rotary",), "norm_placement": ("pre",), "qk_norm": (False,)}
LLAMA = ROTARY | {"norm": ("rmsnorm",), "activation": ("swiglu",)}
GPT2 = ROTARY | {"positional_encoding": ("learned",), "norm": ("layernorm",), "activation": UNGATED}
GPT2 |= {"num_kv_heads": (None,), "sliding_window": (None,)}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "attention_dropout": 0.0}
DEFAULTS |= {"rope_theta": 10000.0}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}
NO_DROPOUTS = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}

_FAMILIES = [  # in order of preference: the first that fits is chosen
    Family(
        model_type="llama", architecture="LlamaForCausalLM", fits=LLAMA | {"sliding_window": (None,)},
        modules=LLAMA_MODULES, names=NAMES | BIASES, extra=_head_dim, defaults=DEFAULTS | NO_BIASES,
    ),
    Family(
        model_type="qwen3", architecture="Qwen3ForCausalLM", fits=LLAMA | {"qk_norm": (True,), "bias": (False,)},
        modules=LLAMA_MODULES, names=NAMES | WINDOW,
        extra=lambda config: {**_head_dim(config), **_windows(config), "attention_bias": False},
        defaults=DEFAULTS
        | {"num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False, "sliding_window": 4096},
    ),
    Family(
        model_type="mistral", architecture="MistralForCausalLM", fits=LLAMA | {"bias": (False,)},
        modules=LLAMA_MODULES, names=NAMES | WINDOW, extra=_head_dim,
        defaults=DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        model_type="gpt2", architecture="GPT2LMHeadModel", fits=GPT2,
        modules=GPT2_MODULES, names=GPT2_NAMES,
        extra=lambda config: dict(
            scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
        ),
        defaults={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        biased=True, transposed=True,
    ),
    Family(
        model_type="starcoder2", architecture="Starcoder2ForCausalLM",
        fits=ROTARY | {"norm": ("layernorm",), "activation": UNGATED},
        modules=STARCODER2_MODULES, names=NAMES | WINDOW | STARCODER2_NAMES, extra=lambda config: {},
        defaults=NO_DROPOUTS
        | {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "rope_theta": 10000.0, "use_bias": True}
        | {"tie_word_embeddings": True, "num_key_value_heads": 2, "sliding_window": None},
        biased=True,
    ),
    Family(
        model_type="arcee", architecture="ArceeForCausalLM",
        fits=ROTARY | {"norm": ("rmsnorm",), "activation": UNGATED, "sliding_window": (None,)},
        modules=LLAMA_MODULES, names=NAMES | BIASES, extra=_head_dim,
        defaults=DEFAULTS | NO_BIASES | {"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    ),
    Family(
        model_type="smollm3", architecture="SmolLM3ForCausalLM",
        fits=LLAMA | {"positional_encoding": ("rotary", "none")},
        modules=LLAMA_MODULES, names=NAMES | BIASES | WINDOW,
        extra=lambda config: {
            **_windows(config), "no_rope_layers": [int(config.positional_encoding == "rotary")] * config.num_layers,
        },
        defaults=DEFAULTS | NO_BIASES
        | {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6}
        | {"use_sliding_window": False, "sliding_window": None},
    ),
    Family(
        model_type="opt", architecture="OPTForCausalLM",
        fits=GPT2 | {"norm_placement": ("post",), "norm_eps": (1e-5,)},
        modules=OPT_MODULES, names=OPT_NAMES,
        extra=lambda config: dict(
            do_layer_norm_before=False, layer_norm_elementwise_affine=True, word_embed_proj_dim=config.d_model
        ),
        defaults={"activation_function": "relu", "tie_word_embeddings": True, "enable_bias": True}
        | {"dropout": 0.1, "attention_dropout": 0.0, "do_layer_norm_before": True},
        biased=True, spare_positions=2,
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
    values = config.to_dict()
    values["num_kv_heads"] = None if config.kv_heads == config.num_heads else config.kv_heads
    misfits = {
        family.model_type: [name for name, fitting in family.fits.items() if values[name] not in fitting]
        for family in _FAMILIES
    }
    fewest = min(map(len, misfits.values()))
    nearest = [family for family in _FAMILIES if len(misfits[family.model_type]) == fewest]
    if not fewest:
        return nearest[0]
    for name in values:
        if all(name in each for each in misfits.values()):
            known = dict.fromkeys(value for family in _FAMILIES for value in family.fits[name])
            raise ConfigError(f"{name}={values[name]}: no counterpart in Hugging Face's models; use {_or(known)}")
    names = dict.fromkeys(name for family in nearest for name in misfits[family.model_type])
    given = " and ".join(f"{name}={values[name]}" for name in names)
    remedies = {}  # remedy -> the first family that it fits
    for family in nearest:
        remedy = " and ".join(f"{name}={_or(family.fits[name])}" for name in misfits[family.model_type])
        remedies.setdefault(remedy, f"{remedy} would fit {family.architecture}")
    raise ConfigError(
        f"{given}: no counterpart in Hugging Face's models with the other fields; {', '.join(remedies.values())}"
    )


def _or(values: Iterable[Any]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)
