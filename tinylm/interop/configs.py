"""config.json, written from a ModelConfig and read into one.

After reading, the config is exported again and compared. A field that differs, or that is unknown, could change the
logits, so it is refused by name. Fields that are null are ignored.
"""

import json
from typing import Any

from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.interop.families import FAMILIES, Family
from tinylm.model import ModelConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "swiglu": "silu"}
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}  # other names of the same functions

HARMLESS = {  # fields that do not change logits
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "finetuning_task",
    "gradient_checkpointing", "id2label", "init_std", "initializer_range", "is_llama_config", "label2id", "layerdrop",
    "max_window_layers", "model_type", "n_ctx", "num_labels", "_num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "reorder_and_upcast_attn", "return_dict", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
    "_remove_final_layer_norm", "no_rope_layer_interval", "transformers.js_config", "_attn_implementation_autoset",
    "attn_implementation",
}  # fmt: skip
MOST_LAYERS = 10_000
REASONS = {"qwen2": "only its queries, keys and values have a bias, which ModelConfig.bias cannot express"}


def export_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The fields of config.json that change logits, and dropout."""
    ours = config.to_dict() | {"num_kv_heads": config.kv_heads, "d_ff": config.ff_width}
    ours |= {"bias": config.bias or family.biased, "activation": ACTIVATIONS[config.activation]}
    fields = {}
    for name, theirs in family.names.items():
        fields |= dict.fromkeys(_all(theirs), ours[name])
    return fields | family.extra(config)


def import_config(values: Any) -> tuple[ModelConfig, Family]:
    """The config and the family that the content of a config.json describes.

    Raises:
        ConfigError: for anything that tinylm does not support; names the field.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError("is not a config.json of Hugging Face: model_type is missing")
    kind = values["model_type"]
    if kind not in FAMILIES:
        reason = REASONS.get(kind, f"known are {', '.join(FAMILIES)}{did_you_mean(kind, FAMILIES)}")
        raise ConfigError(f"model_type is {kind!r}: {reason}")
    family = FAMILIES[kind]
    fields = _complete(values, family)
    config = _read(fields, family)
    expected = {"rope_interleaved": False} | export_config(config, family)
    dropouts = _all(family.names["dropout"])
    for name, value in fields.items():
        if name in dropouts and value != expected[name]:
            notice(f"config.json: {name} is {_shown(value)}; tinylm uses {config.dropout} for all dropout in training")
        elif name in expected and value != expected[name]:
            raise ConfigError(f"{name} is {_shown(value)}; tinylm supports only {_shown(expected[name])} here")
        elif name not in expected and name not in HARMLESS:
            raise ConfigError(f"{name} is {_shown(value)}; tinylm does not support this field")
    return config, family


def _complete(values: dict[str, Any], family: Family) -> dict[str, Any]:
    """The fields of a config.json, with missing ones derived as transformers does."""
    fields = {name: value for name, value in values.items() if value is not None or name == "sliding_window"}
    fields = dict(family.defaults) | _unscaled_rope(fields)
    if family.model_type == "gpt2":
        fields.setdefault("n_inner", 4 * fields.get("n_embd", 0))
    if "num_kv_heads" in family.names:
        fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    for name in ("hidden_act", "activation_function"):
        if name in fields:
            fields[name] = SYNONYMS.get(str(fields[name]), fields[name])
    if "use_sliding_window" in fields:
        _complete_windows(fields)
    return fields


def _unscaled_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with `rope_theta` in place of the dicts that contain it, if these do not scale positions."""
    names = ("rope_parameters", "rope_scaling")
    result = {name: value for name, value in fields.items() if name not in names}
    for name in names:
        rope = fields.get(name, {})
        kinds = {rope.get("rope_type", "default"), rope.get("type", "default")} if isinstance(rope, dict) else {}
        if kinds != {"default"} or not rope.keys() <= {"rope_type", "type", "rope_theta"}:
            raise ConfigError(f"{name} is {_shown(rope)}; tinylm supports unscaled rotary positions only")
        theta = rope.get("rope_theta", result.get("rope_theta"))
        if "rope_theta" in result and theta != result["rope_theta"]:
            raise ConfigError(f"rope_theta is {result['rope_theta']}, but {theta} in {name}; make them equal")
        if theta is not None:
            result["rope_theta"] = theta
    return result


def _complete_windows(fields: dict[str, Any]) -> None:
    """Adds the attention type of each layer, if missing."""
    layers = range(fields["num_hidden_layers"])
    if len(layers) > MOST_LAYERS:
        raise ConfigError(f"num_hidden_layers is {len(layers):,}; tinylm supports at most {MOST_LAYERS:,}")
    if not fields["use_sliding_window"]:
        fields["sliding_window"] = None
    if fields["model_type"] == "smollm3":
        interval = fields.get("no_rope_layer_interval", 4)
        fields.setdefault("no_rope_layers", [int((layer + 1) % interval != 0) for layer in layers])
        full = [bool(rotary) for rotary in fields["no_rope_layers"]]
    else:
        full = [layer < fields.get("max_window_layers", 28) for layer in layers]
    kinds = {True: "full_attention", False: "sliding_attention"}
    fields.setdefault("layer_types", [kinds[fields["sliding_window"] is None or full[layer]] for layer in layers])


def _read(fields: dict[str, Any], family: Family) -> ModelConfig:
    """Reads each of our fields from the first of theirs. `import_config` checks that the others agree."""
    ours: dict[str, Any] = {name: values[0] for name, values in family.fits.items() if len(values) == 1}
    for name, theirs in family.names.items():
        first = _all(theirs)[0]
        if first not in fields:
            raise ConfigError(f"{first} is missing")
        ours[name] = fields[first]
    known = {ACTIVATIONS[name]: name for name in family.fits["activation"]}
    if str(ours["activation"]) not in known:
        field = family.names["activation"]
        raise ConfigError(f"{field} is {_shown(ours['activation'])}; tinylm supports {', '.join(known)} here")
    ours["activation"] = known[ours["activation"]]
    if "layer_types" in fields and "sliding_attention" not in fields["layer_types"]:
        ours["sliding_window"] = None
    if family.model_type == "smollm3":
        ours["positional_encoding"] = "rotary" if any(fields["no_rope_layers"]) else "none"
    if family.biased:
        ours["bias"] = True
    return ModelConfig.from_dict(ours)


def _all(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."
