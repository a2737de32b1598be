"""config.json, written from a ModelConfig and read into one; the fields of generation_config.json.

After reading, the config is exported again and compared. A field that differs or is unknown could change the logits,
so it is refused by name. Unknown fields that are null, false, empty or at the library's default have no effect and are
ignored.
"""

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.interop.families import FAMILIES, Family
from tinylm.interop.fields import FULL, Fields, is_nothing, refuse, shown
from tinylm.model import ModelConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "swiglu": "silu"}
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}  # other names of the same functions
# Old files of GPT-2 have no model_type.
CLASSES = {str([family.architecture]): kind for kind, family in FAMILIES.items()}
FOUR_TIMES = ("gpt2", "gpt_neo")  # families whose feed-forward layer has four times the width by default
MOST_LAYERS = 10_000

HARMLESS = {  # fields that do not change logits
    "_name_or_path", "architectures", "bos_token_id", "decoder_start_token_id", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "init_std", "initializer_range", "is_decoder",
    "is_llama_config", "label2id", "max_window_layers", "model_type", "n_ctx", "num_labels", "_num_labels",
    "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "prefix", "pretraining_tp",
    "problem_type", "reorder_and_upcast_attn", "return_dict", "sep_token_id", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "unsloth_fixed", "unsloth_version",
    "use_bfloat16", "max_sequence_length", "use_cache", "no_rope_layer_interval", "transformers.js_config",
    "_attn_implementation_autoset", "attn_implementation", "_attn_implementation",
}  # fmt: skip
LIBRARY = {  # the library's defaults of fields that every config may have
    "chunk_size_feed_forward": 0, "is_causal": True, "is_encoder_decoder": False, "partial_rotary_factor": 1.0,
    "rope_interleaved": False, "tf_legacy_loss": False, "tie_encoder_decoder": False,
}  # fmt: skip
REASONS = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "its norms multiply by 1 + weight, and it scales "
                    "its embeddings, which ModelConfig cannot express"),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4",
                     "granitemoe", "phimoe"), "its feed-forward layers are mixtures of experts, which tinylm lacks"),
    **dict.fromkeys(("gptj", "codegen"), "its rotary positions rotate neighbouring dimensions, tinylm's do not"),
    **dict.fromkeys(("bloom", "mpt"), "its positions are ALiBi, which tinylm lacks"),
    **dict.fromkeys(("mamba", "mamba2", "rwkv", "falcon_mamba"), "it is not a transformer"),
    **dict.fromkeys(("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "t5", "mt5", "bart",
                     "modernbert"), "it is not a decoder that predicts the next token"),
    "olmo": "its LayerNorm has no weights, which ModelConfig cannot express",
    "granite": "it multiplies embeddings, residuals and logits by constants, which ModelConfig cannot express",
    "phi3": "it stores joint matrices that tinylm does not read",
}  # fmt: skip

# --- generation_config.json

OWN_OPTIONS = {  # sampling and search: the generator's own options apply. Values that have no effect
    "do_sample": (True, False), "temperature": (1.0,), "top_k": (0, 50), "top_p": (1.0,), "min_p": (0.0,),
    "typical_p": (1.0,), "top_h": (), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "repetition_penalty": (1.0,),
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "length_penalty": (1.0,),
    "diversity_penalty": (0.0,), "early_stopping": (False,), "penalty_alpha": (0.0,), "max_length": (20,),
    "max_new_tokens": (), "min_length": (0,), "min_new_tokens": (0,), "no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,), "remove_invalid_values": (False,), "max_time": (),
}  # fmt: skip
BOOKKEEPING = {  # of generation_config.json; ids of special tokens belong to the tokenizer
    "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    "transformers_version", "use_cache", "cache_implementation", "cache_config", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "trust_remote_code",
    "chat_format", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "is_assistant", "disable_compile", "low_memory",
    "prefill_chunk_size", "token_healing", "use_model_defaults",
}  # fmt: skip
NEUTRAL = {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0}


def check_generation_config(values: Any) -> None:
    """Checks the content of a generation_config.json; reports sampling options, which tinylm ignores.

    Raises:
        ConfigError: for another field that would change the generated text; names the field.
    """
    if not isinstance(values, dict):
        raise ConfigError("must be an object with fields")
    check_unknown(values, BOOKKEEPING | OWN_OPTIONS.keys(), NEUTRAL)
    _report_options(values, "generation_config.json")


def _report_options(values: Fields, source: str) -> None:
    """Prints a notice of the generation options that a file sets but tinylm takes from the user."""
    unused = [
        f"{name} {shown(value)}"
        for name, value in values.items()
        if name in OWN_OPTIONS and not is_nothing(value) and value not in OWN_OPTIONS[name]
    ]
    if unused:
        notice(f"{source}: {', '.join(unused)}: not used; tinylm has its own generation options")


def check_unknown(values: Fields, known: set[str], harmless: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown field, unless its value has no effect or is in `harmless`."""
    for name, value in values.items():
        nothing = value == harmless[name] or value is None if name in harmless else is_nothing(value)
        if name not in known and not nothing:
            raise ConfigError(f"{name} is {shown(value)}; tinylm does not support this field")


# --- config.json


def export_config(config: ModelConfig, family: Family) -> Fields:
    """The fields of config.json that change logits, and dropout."""
    ours = config.to_dict() | {"num_kv_heads": config.kv_heads, "d_ff": config.ff_width} | dict(family.biases)
    ours["activation"] = ACTIVATIONS[str(config.activation)]
    fields: Fields = {}
    for name, theirs in family.names.items():
        fields |= dict.fromkeys(_all(theirs), ours[name])
    activation = str(family.names["activation"])
    if SYNONYMS.get(usual := family.defaults[activation]) == fields[activation]:
        fields[activation] = usual
    for translation in family.translations:
        fields |= translation.write(config)
    return fields


def import_config(values: Any) -> tuple[ModelConfig, Family]:
    """The config and the family that the content of a config.json describes.

    Raises:
        ConfigError: for anything that tinylm does not support; names the field.
    """
    if not isinstance(values, dict):
        raise ConfigError("is not a config.json of Hugging Face: it must be an object with fields")
    kind = values.get("model_type") or CLASSES.get(str(values.get("architectures")))
    if not isinstance(kind, str):
        raise ConfigError("is not a config.json of Hugging Face: model_type is missing")
    if kind not in FAMILIES:
        reason = REASONS.get(kind, f"known are {', '.join(FAMILIES)}{did_you_mean(kind, FAMILIES)}")
        raise ConfigError(f"model_type is {kind!r}: {reason}")
    family = FAMILIES[kind]
    fields = _complete(values, family)
    config = _read(fields, family)
    expected = export_config(config, family)
    activation, dropouts = str(family.names["activation"]), _all(family.names["dropout"])
    expected[activation] = SYNONYMS.get(expected[activation], expected[activation])
    for name in fields:
        if name not in expected:
            continue
        if name in dropouts and fields[name] != expected[name]:
            notice(f"config.json: {name} is {shown(fields[name])}; tinylm uses {config.dropout} for all dropout")
        elif fields[name] != expected[name]:
            refuse(name, fields[name], shown(expected[name]))
    types = fields.get("layer_types")
    if "layer_types" not in expected and isinstance(types, list) and all(each == FULL for each in types):
        del fields["layer_types"]
    check_unknown(fields, HARMLESS | OWN_OPTIONS.keys() | expected.keys(), {**LIBRARY, **NEUTRAL, **family.harmless})
    _report_options(fields, "config.json")
    return config, family


def _complete(values: Fields, family: Family) -> Fields:
    """The fields of a config.json, with missing ones derived as transformers does, and of the right types."""
    fields: Fields = {**family.defaults, **{name: value for name, value in values.items() if value is not None}}
    for name in ("sliding_window", "num_key_value_heads"):  # fields whose null differs from the default
        if name in values and values[name] is None and name in fields:
            del fields[name]
    if "sliding_window" in family.defaults:
        fields.setdefault("sliding_window", None)
    _check_types(fields, family)
    if fields[layers := str(family.names["num_layers"])] > MOST_LAYERS:
        raise ConfigError(f"{layers} is {fields[layers]:,}; tinylm supports at most {MOST_LAYERS:,}")
    if family.model_type in FOUR_TIMES:
        fields.setdefault(str(family.names["d_ff"]), 4 * fields[str(family.names["d_model"])])
    if "num_kv_heads" in family.names:
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    activation = str(family.names["activation"])
    fields[activation] = SYNONYMS.get(str(fields[activation]), fields[activation])
    return fields


def _check_types(fields: Fields, family: Family) -> None:
    """Checks that the fields that are merely renamed exist and have the right types."""
    hints = get_type_hints(ModelConfig)
    for ours, names in family.names.items():
        kinds = set(get_args(hints[ours]) or (hints[ours],)) - {NoneType}
        for name in _all(names):
            derived = ours == "num_kv_heads" or (ours == "d_ff" and family.model_type in FOUR_TIMES)
            if name not in fields:
                if not derived and name == _all(names)[0]:
                    raise ConfigError(f"{name} is missing")
                continue
            value = fields[name]
            if int in kinds and (type(value) is not int or value < 1):
                refuse(name, value, "a positive integer")
            elif float in kinds and type(value) not in (int, float):
                refuse(name, value, "a number")
            elif bool in kinds and type(value) is not bool:
                refuse(name, value, "true or false")


def _read(fields: Fields, family: Family) -> ModelConfig:
    """Reads each of our fields from the first matching field. `import_config` checks that the others agree."""
    ours: Fields = {name: values[0] for name, values in family.fits.items() if isinstance(values, tuple)}
    ours |= {name: fields[_all(theirs)[0]] for name, theirs in family.names.items()}
    known = {ACTIVATIONS[name]: name for name in family.activations}
    if str(ours["activation"]) not in known:
        name = family.names["activation"]
        raise ConfigError(f"{name} is {shown(ours['activation'])}; tinylm supports {', '.join(known)} here")
    ours["activation"] = known[ours["activation"]]
    for translation in family.translations:
        ours |= translation.read(fields)
    try:
        return ModelConfig.from_dict(ours | dict(family.biases))
    except ConfigError as error:
        theirs = {ours: _all(names)[0] for ours, names in family.names.items()}
        theirs |= {"d_head": "head_dim", "rotary_fraction": "partial_rotary_factor"}
        text = re.sub(r"\w+", lambda word: theirs.get(word[0], word[0]), str(error))
        raise ConfigError(text) from error


def _all(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
