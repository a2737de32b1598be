"""config.json, both ways: written from a ModelConfig, and read into one.

What is read is described again as it would be written. A field that says otherwise there, or that is not known at all,
would change the numbers: it is refused by its name, never passed over. A field that is empty (null) says nothing.
"""

import json
from typing import Any

from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.interop.families import FAMILIES, Family
from tinylm.model import ModelConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "swiglu": "silu"}
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}  # other names of the same function

# Fields that change no logits.
HARMLESS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "finetuning_task",
    "gradient_checkpointing", "id2label", "init_std", "initializer_range", "is_llama_config", "label2id", "layerdrop",
    "max_window_layers", "model_type", "n_ctx", "num_labels", "_num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "reorder_and_upcast_attn", "return_dict", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
    "_remove_final_layer_norm", "no_rope_layer_interval", "transformers.js_config", "_attn_implementation_autoset",
    "attn_implementation",
}  # fmt: skip
REASONS = {
    "qwen2": "its queries, keys and values have a bias and its other layers none, which ModelConfig.bias cannot say",
}


def describe(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The fields of config.json that act on logits, and dropout."""
    ours = config.to_dict() | {"num_kv_heads": config.kv_heads, "d_ff": config.ff_width}
    ours |= {"bias": family.has_biases(config), "activation": ACTIVATIONS[config.activation]}
    found = {}
    for name, theirs in family.names.items():
        found |= dict.fromkeys(_each(theirs), ours[name])
    return found | family.more(config)


def understand(values: Any) -> tuple[ModelConfig, Family]:
    """The architecture that the content of a config.json describes.

    Raises:
        ConfigError: for what tinylm does not have, by the name of the field.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError("is no config.json of Hugging Face's: model_type is missing")
    kind = values["model_type"]
    if kind not in FAMILIES:
        reason = REASONS.get(kind, f"known are {', '.join(FAMILIES)}{did_you_mean(kind, FAMILIES)}")
        raise ConfigError(f"model_type is {kind!r}: {reason}")
    family = FAMILIES[kind]
    said = _complete(values, family)
    config = _read(said, family)
    expected = {"rope_interleaved": False} | describe(config, family)
    dropouts = _each(family.names["dropout"])
    for name, value in said.items():
        if name in dropouts and value != expected[name]:
            notice(f"config.json: {name} is {_shown(value)}, here it is {config.dropout} as all dropout (in training)")
        elif name in expected and value != expected[name]:
            raise ConfigError(f"{name} is {_shown(value)}; tinylm has only {_shown(expected[name])} beside the rest")
        elif name not in expected and name not in HARMLESS:
            raise ConfigError(f"{name} is {_shown(value)}; tinylm has no such thing")
    return config, family


def _complete(values: dict[str, Any], family: Family) -> dict[str, Any]:
    """What a config.json says, and what it leaves to be derived, as transformers does it."""
    said = {name: value for name, value in values.items() if value is not None or name == "sliding_window"}
    said = dict(family.defaults) | _rope(said)
    if family.model_type == "gpt2":
        said.setdefault("n_inner", 4 * said.get("n_embd", 0))
    if "num_kv_heads" in family.names:
        said.setdefault("num_key_value_heads", said.get("num_attention_heads"))
    for name in ("hidden_act", "activation_function"):
        if name in said:
            said[name] = SYNONYMS.get(str(said[name]), said[name])
    if "use_sliding_window" in said:
        _complete_windows(said)
    return said


def _rope(said: dict[str, Any]) -> dict[str, Any]:
    """The same with `rope_theta` alone, if rotary positions are plain ones."""
    rest = {name: value for name, value in said.items() if name not in ("rope_parameters", "rope_scaling")}
    for name in ("rope_parameters", "rope_scaling"):
        plain = said.get(name, {})
        kinds = {plain.get("rope_type", "default"), plain.get("type", "default")} if isinstance(plain, dict) else {}
        if kinds != {"default"} or not plain.keys() <= {"rope_type", "type", "rope_theta"}:
            raise ConfigError(f"{name} is {_shown(plain)}; tinylm has plain rotary positions only")
        theta = plain.get("rope_theta", rest.get("rope_theta"))
        if "rope_theta" in rest and theta != rest["rope_theta"]:
            raise ConfigError(f"rope_theta is {rest['rope_theta']}, and {theta} in {name}; make them the same")
        if theta is not None:
            rest["rope_theta"] = theta
    return rest


def _complete_windows(said: dict[str, Any]) -> None:
    """Says the window layer by layer, where it is not."""
    layers = range(said["num_hidden_layers"])
    if not said["use_sliding_window"]:
        said["sliding_window"] = None
    if said["model_type"] == "smollm3":
        interval = said.get("no_rope_layer_interval", 4)
        said.setdefault("no_rope_layers", [int((layer + 1) % interval != 0) for layer in layers])
        full = [bool(rotated) for rotated in said["no_rope_layers"]]
    else:
        full = [layer < said.get("max_window_layers", 28) for layer in layers]
    kinds = {True: "full_attention", False: "sliding_attention"}
    said.setdefault("layer_types", [kinds[said["sliding_window"] is None or full[layer]] for layer in layers])


def _read(said: dict[str, Any], family: Family) -> ModelConfig:
    """Each of our fields, from the first of theirs. Whether the others agree is seen when it is described again."""
    ours: dict[str, Any] = {name: values[0] for name, values in family.fits.items() if len(values) == 1}
    for name, theirs in family.names.items():
        first = _each(theirs)[0]
        if first not in said:
            raise ConfigError(f"lacks {first}")
        ours[name] = said[first]
    known = {ACTIVATIONS[name]: name for name in family.fits["activation"]}
    if str(ours["activation"]) not in known:
        field = family.names["activation"]
        raise ConfigError(f"{field} is {_shown(ours['activation'])}; tinylm has {', '.join(known)} here")
    ours["activation"] = known[ours["activation"]]
    if "layer_types" in said and "sliding_attention" not in said["layer_types"]:
        ours["sliding_window"] = None
    if family.model_type == "smollm3":
        ours["positional_encoding"] = "rotary" if any(said["no_rope_layers"]) else "none"
    if family.biased:
        ours["bias"] = True
    return ModelConfig.from_dict(ours)


def _each(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."
