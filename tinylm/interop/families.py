"""Which of Hugging Face's architectures computes what a ModelConfig describes, and how they name it.

A family is one class of transformers. It `fits` a config if it has a counterpart for every field that acts on logits.
Training's own fields have none: `document_mask`, `zero_init_output`, `activation_checkpointing`, `attention_kernel`.
Dropout has one in part: outside GPT-2 and Starcoder2 it is that of attention weights alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig

# Our fields, and theirs in most families.
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

# Our modules, and theirs. Where several of ours have one of theirs, they stand in it one after the other.
LLAMA_WEIGHTS = {
    "embedding": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.query": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.key": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.value": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.output": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.query_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.key_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.feedforward_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.feedforward.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.feedforward.input": "model.layers.{}.mlp.up_proj",
    "blocks.{}.feedforward.output": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
STARCODER2_WEIGHTS = LLAMA_WEIGHTS | {
    "blocks.{}.feedforward.input": "model.layers.{}.mlp.c_fc",
    "blocks.{}.feedforward.output": "model.layers.{}.mlp.c_proj",
}
GPT2_WEIGHTS = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "blocks.{}.attention_norm": "transformer.h.{}.ln_1",
    "blocks.{}.attention.query": "transformer.h.{}.attn.c_attn",
    "blocks.{}.attention.key": "transformer.h.{}.attn.c_attn",
    "blocks.{}.attention.value": "transformer.h.{}.attn.c_attn",
    "blocks.{}.attention.output": "transformer.h.{}.attn.c_proj",
    "blocks.{}.feedforward_norm": "transformer.h.{}.ln_2",
    "blocks.{}.feedforward.input": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.feedforward.output": "transformer.h.{}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
OPT_WEIGHTS = {
    "embedding": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "blocks.{}.attention.query": "model.decoder.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.key": "model.decoder.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.value": "model.decoder.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.output": "model.decoder.layers.{}.self_attn.out_proj",
    "blocks.{}.attention_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "blocks.{}.feedforward.input": "model.decoder.layers.{}.fc1",
    "blocks.{}.feedforward.output": "model.decoder.layers.{}.fc2",
    "blocks.{}.feedforward_norm": "model.decoder.layers.{}.final_layer_norm",
    "head": "lm_head",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of transformers.

    Attributes:
        model_type: its name in config.json
        architecture: its class
        fits: our field -> the values that it has a counterpart for; any, where a field is left out
        weights: our module -> theirs
        names: our field -> theirs; several, if these must be the same
        more: the rest of config.json that acts on logits
        defaults: what transformers takes where a config.json leaves a field out
        biased: whether norms have a bias in any case; a model without gets zeros, which are no bias
        transposed: whether the matrices of blocks are kept as (inputs, outputs)
        spare_positions: unused rows before those of the positions
    """

    model_type: str
    architecture: str
    fits: Mapping[str, tuple[Any, ...]]
    weights: Mapping[str, str]
    names: Mapping[str, str | tuple[str, ...]]
    more: Callable[[ModelConfig], dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biased: bool = False
    transposed: bool = False
    spare_positions: int = 0

    def has_biases(self, config: ModelConfig) -> bool:
        """Whether the network has biases there."""
        return config.bias or self.biased


def _heads(config: ModelConfig) -> dict[str, Any]:
    return {"head_dim": config.head_dim}


def _windows(config: ModelConfig) -> dict[str, Any]:
    """The window, where it is said layer by layer."""
    sliding = config.sliding_window is not None
    kind = "sliding_attention" if sliding else "full_attention"
    return {"use_sliding_window": sliding, "layer_types": [kind] * config.num_layers}


def _qwen3(config: ModelConfig) -> dict[str, Any]:
    return {**_heads(config), **_windows(config), "attention_bias": False}


def _smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = int(config.positional_encoding == "rotary")
    return {**_windows(config), "no_rope_layers": [rotated] * config.num_layers}


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    odd = ("scale_attn_by_inverse_layer_idx", "add_cross_attention")
    return {"scale_attn_weights": True, **dict.fromkeys(odd, False)}


def _opt(config: ModelConfig) -> dict[str, Any]:
    norms = {"do_layer_norm_before": False, "layer_norm_elementwise_affine": True}
    return {**norms, "word_embed_proj_dim": config.d_model}


UNGATED = ("gelu", "gelu_tanh", "relu", "relu2")
ROTARY = {"positional_encoding": ("rotary",), "norm_placement": ("pre",), "qk_norm": (False,)}
LLAMA = ROTARY | {"norm": ("rmsnorm",), "activation": ("swiglu",)}
GPT2 = ROTARY | {"positional_encoding": ("learned",), "norm": ("layernorm",), "activation": UNGATED}
GPT2 |= {"num_kv_heads": (None,), "sliding_window": (None,)}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "attention_dropout": 0.0}
DEFAULTS |= {"rope_theta": 10000.0}
NO_DROPOUTS = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}

# In the order of preference: of those that fit, the first is taken.
_FAMILIES = [
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        fits=LLAMA | {"sliding_window": (None,)},
        weights=LLAMA_WEIGHTS,
        names=NAMES | BIASES,
        more=_heads,
        defaults=DEFAULTS | NO_BIASES,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        fits=LLAMA | {"qk_norm": (True,), "bias": (False,)},
        weights=LLAMA_WEIGHTS,
        names=NAMES | WINDOW,
        more=_qwen3,
        defaults=DEFAULTS
        | {"num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False, "sliding_window": 4096},
    ),
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        fits=LLAMA | {"bias": (False,)},
        weights=LLAMA_WEIGHTS,
        names=NAMES | WINDOW,
        more=_heads,
        defaults=DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        fits=GPT2,
        weights=GPT2_WEIGHTS,
        names=GPT2_NAMES,
        more=_gpt2,
        defaults={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        biased=True,
        transposed=True,
    ),
    Family(
        model_type="starcoder2",
        architecture="Starcoder2ForCausalLM",
        fits=ROTARY | {"norm": ("layernorm",), "activation": UNGATED},
        weights=STARCODER2_WEIGHTS,
        names=NAMES | WINDOW | STARCODER2_NAMES,
        more=lambda config: {},
        defaults=NO_DROPOUTS
        | {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "rope_theta": 10000.0, "use_bias": True}
        | {"tie_word_embeddings": True, "num_key_value_heads": 2, "sliding_window": None},
        biased=True,
    ),
    Family(
        model_type="arcee",
        architecture="ArceeForCausalLM",
        fits=ROTARY | {"norm": ("rmsnorm",), "activation": UNGATED, "sliding_window": (None,)},
        weights=LLAMA_WEIGHTS,
        names=NAMES | BIASES,
        more=_heads,
        defaults=DEFAULTS | NO_BIASES | {"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    ),
    Family(
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        fits=LLAMA | {"positional_encoding": ("rotary", "none")},
        weights=LLAMA_WEIGHTS,
        names=NAMES | BIASES | WINDOW,
        more=_smollm3,
        defaults=DEFAULTS
        | NO_BIASES
        | {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6}
        | {"use_sliding_window": False, "sliding_window": None},
    ),
    Family(
        model_type="opt",
        architecture="OPTForCausalLM",
        fits=GPT2 | {"norm_placement": ("post",), "norm_eps": (1e-5,)},
        weights=OPT_WEIGHTS,
        names=OPT_NAMES,
        more=_opt,
        defaults={"activation_function": "relu", "tie_word_embeddings": True, "enable_bias": True}
        | {"dropout": 0.1, "attention_dropout": 0.0, "do_layer_norm_before": True},
        biased=True,
        spare_positions=2,
    ),
]
FAMILIES = {family.model_type: family for family in _FAMILIES}


# --- the choice


def choose_family(config: ModelConfig) -> Family:
    """The first family that computes what this config describes.

    Raises:
        ConfigError: if there is none, with the fields that fit nowhere, and what would fit.
    """
    if config.sliding_window == 1:
        raise ConfigError("sliding_window=1 has no counterpart in Hugging Face's models: their cache keeps window - 1")
    found = _traits(config)
    misfits = {family.model_type: _misfits(family, found) for family in _FAMILIES}
    fewest = min(map(len, misfits.values()))
    nearest = [family for family in _FAMILIES if len(misfits[family.model_type]) == fewest]
    if not fewest:
        return nearest[0]
    for name in found:
        if all(name in each for each in misfits.values()):
            known = dict.fromkeys(value for family in _FAMILIES for value in family.fits[name])
            raise ConfigError(f"{name}={found[name]} has no counterpart in Hugging Face's models; {_or(known)} has")
    names = dict.fromkeys(name for family in nearest for name in misfits[family.model_type])
    given = " and ".join(f"{name}={found[name]}" for name in names)
    remedies = {}  # of two with the same remedy, the first is enough
    for family in nearest:
        wanted = " and ".join(f"{name}={_or(family.fits[name])}" for name in misfits[family.model_type])
        remedies.setdefault(wanted, f"{wanted} would fit {family.architecture}")
    raise ConfigError(
        f"{given} has no counterpart in Hugging Face's models beside the other fields; {', '.join(remedies.values())}"
    )


def _traits(config: ModelConfig) -> dict[str, Any]:
    """The fields, those that may be said in two ways in one: no number of key/value heads if that of query heads."""
    many = config.kv_heads == config.num_heads
    return {**config.to_dict(), "num_kv_heads": None if many else config.kv_heads}


def _misfits(family: Family, found: Mapping[str, Any]) -> list[str]:
    return [name for name, values in family.fits.items() if found[name] not in values]


def _or(values: Iterable[Any]) -> str:
    return " or ".join("empty" if value is None else str(value) for value in values)
