"""Fields of config.json that take more than another name: rotary positions, the attention of each layer, head widths.

A `Translation` writes such fields and reads them. Reading completes them as transformers does and brings them into the
spelling in which they are written, so that `import_config` can compare the two.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig

Fields = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS, WIDTH, HEADS = "num_hidden_layers", "hidden_size", "num_attention_heads"


@dataclass(frozen=True)
class Translation:
    """Fields that belong together.

    Attributes:
        write: the fields that describe a config
        read: values of our fields; may change the given ones to the spelling of `write`. ConfigError names a field
    """

    write: Callable[[ModelConfig], Fields]
    read: Callable[[Fields], Fields] = lambda fields: {}


def constant(**fields: Any) -> Translation:
    """Fields of which tinylm supports one value."""
    return Translation(lambda config: fields)


def shown(value: Any) -> str:
    """A value of a JSON file, shortened."""
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def is_nothing(value: Any) -> bool:
    """Whether a value is null, false or empty, and so turns nothing on."""
    return value is None or value is False or value in ("", [], {})


def refuse(name: str, value: Any, supported: str) -> None:
    """Raises the ConfigError of a value that tinylm does not support."""
    raise ConfigError(f"{name} is {shown(value)}; tinylm supports only {supported} here")


# --- heads


def head_dim(always: bool = True) -> Translation:
    """The width of a head; written for every config, or only where it is not hidden_size / num_attention_heads."""

    def write(config: ModelConfig) -> Fields:
        usual = config.head_dim * config.num_heads == config.d_model
        return {"head_dim": config.head_dim} if always or not usual else {}

    def read(fields: Fields) -> Fields:
        width = fields.get("head_dim")
        if width is None:
            return {"d_head": None}
        if type(width) is not int or width < 1:
            refuse("head_dim", width, "a positive integer")
        usual = width * fields[HEADS] == fields[WIDTH]
        if usual and not always:
            del fields["head_dim"]
        return {"d_head": None if usual else width}

    return Translation(write, read)


# --- rotary positions

SCALINGS = {  # rope_type -> theirs: ours, their default; a default of `...` is required
    "default": {},
    "linear": {"factor": ("factor", ...)},
    "llama3": {
        "factor": ("factor", ...), "low_freq_factor": ("low_freq_factor", ...),
        "high_freq_factor": ("high_freq_factor", ...),
        "original_max_position_embeddings": ("original_max_seq_len", "max_position_embeddings"),
    },
    "yarn": {
        "factor": ("factor", ...), "beta_fast": ("beta_fast", 32.0), "beta_slow": ("beta_slow", 1.0),
        "attention_factor": ("attention_factor", None), "truncate": ("truncate", True),
        "original_max_position_embeddings": ("original_max_seq_len", "max_position_embeddings"),
    },
}  # fmt: skip
THETA, FRACTION = "rope_theta", "partial_rotary_factor"  # the names that most families use


def rope(theta: float = 10000.0, fraction: float = 1.0, names: tuple[str, str] | None = None) -> Translation:
    """Rotary positions of a family.

    Args:
        theta: transformers' default of the base
        fraction: transformers' default of the share of each head that is rotated
        names: the family's names of both. None: rope_theta, and every head is rotated whole
    """
    theta_name, fraction_name = names or (THETA, "")

    def write(config: ModelConfig) -> Fields:
        fields: Fields = {theta_name: config.rope_theta}
        if fraction_name:
            fields[fraction_name] = config.rotary_fraction
        return fields | _written_scaling(config)

    def read(fields: Fields) -> Fields:
        scaling = _merged(fields)
        for common, own, default in ((THETA, theta_name, theta), (FRACTION, fraction_name, fraction)):
            if own and common in fields:  # GPT-NeoX does not read the common names
                fields.setdefault(own, default)
        base = _one_of(fields, scaling, {THETA, theta_name}, theta)
        share = _one_of(fields, scaling, {FRACTION, fraction_name} - {""}, fraction)
        if not fraction_name and share != 1.0:
            refuse(FRACTION, share, "1.0")
        fields[theta_name] = base
        if fraction_name:
            fields[fraction_name] = share
        ours = {"rope_theta": base, "rotary_fraction": share, "rope_scaling": _read_scaling(fields, scaling)}
        return ours

    return Translation(write, read)


def _merged(fields: Fields) -> Fields:
    """Removes `rope_parameters` and `rope_scaling`, and returns their content without nulls."""
    merged: Fields = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.pop(name, None) or {}
        if not isinstance(rope, dict):
            refuse(name, rope, "an object")
        for key, value in rope.items():
            key = "rope_type" if key == "type" else key
            if value is not None and merged.setdefault(key, value) != value:
                raise ConfigError(f"{name}: {key} is {shown(value)}, but {shown(merged[key])} elsewhere in config.json")
    return merged


def _one_of(fields: Fields, scaling: Fields, names: Iterable[str], default: float) -> Any:
    """Removes all spellings of a number, which must agree, and returns it."""
    found = {name: fields.pop(name) for name in sorted(names) if name in fields}
    for name in sorted(names):
        if name in scaling:
            found[f"{name} of rope_parameters"] = scaling.pop(name)
    value = next(iter(found.values()), default)
    for name, other in found.items():
        if type(other) not in (int, float):
            refuse(name, other, "a number")
        if other != value:
            raise ConfigError(f"{next(iter(found))} is {shown(value)}, but {name} is {shown(other)}; make them equal")
    return value


def _read_scaling(fields: Fields, scaling: Fields) -> Fields | None:
    """Our rope_scaling; sets theirs, complete, in `fields`."""
    kind = scaling.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in SCALINGS:
        refuse("rope_type of rope_scaling", kind, ", ".join(SCALINGS))
    known = SCALINGS[kind]
    if kind == "yarn":
        _read_mscale(scaling)
    for name, value in scaling.items():
        if name not in known and not is_nothing(value):
            raise ConfigError(f"rope_scaling: {name} is {shown(value)}; tinylm does not support this field for {kind}")
    if kind == "default":
        return None
    theirs, ours = {"rope_type": kind}, {"kind": kind}
    for name, (our_name, default) in known.items():
        if name not in scaling and default is ...:
            raise ConfigError(f"rope_scaling: {name} is missing; rope_type {kind} needs it")
        value = scaling.get(name, fields.get(default) if isinstance(default, str) else default)
        ours[our_name] = value
        if value is not None:
            theirs[name] = value
    fields["rope_scaling"] = theirs
    return ours


def _read_mscale(scaling: Fields) -> None:
    """Replaces mscale and mscale_all_dim by the attention_factor that they give; one of them alone has no effect."""
    scales = [scaling.pop(name, None) for name in ("mscale", "mscale_all_dim")]
    for name, value in zip(("mscale", "mscale_all_dim", "factor"), (*scales, scaling.get("factor")), strict=True):
        if value is not None and type(value) not in (int, float):
            refuse(f"{name} of rope_scaling", value, "a number")
    if all(scales) and scaling.get("attention_factor") is None and scaling.get("factor", 0) > 1:
        above, below = (1 + 0.1 * scale * math.log(scaling["factor"]) for scale in scales)
        scaling["attention_factor"] = above / below


def _written_scaling(config: ModelConfig) -> Fields:
    if config.rope_scaling is None:
        return {}
    ours = config.rope_scaling
    theirs: Fields = {"rope_type": ours.kind}
    for name, (our_name, _) in SCALINGS[ours.kind].items():
        value = getattr(ours, our_name)
        if our_name == "original_max_seq_len" and value is None:
            value = config.max_seq_len
        if value is not None:
            theirs[name] = value
    return {"rope_scaling": theirs}


# --- the attention of each layer


def _layers(letters: str, window: int | None) -> Fields:
    """Our fields of a model with these letters of `layer_pattern`, one for each layer."""
    if len(set(letters)) == 1:
        return {"layer_pattern": None, "sliding_window": window if "S" in letters else None}
    period = next(p for p in range(1, len(letters) + 1) if (letters[:p] * len(letters))[: len(letters)] == letters)
    return {"layer_pattern": letters[:period], "sliding_window": window if "S" in letters else None}


def _list_of(fields: Fields, name: str, values: Collection[Any]) -> list[Any]:
    """A field with one of `values` for each layer."""
    found = fields[name]
    layers = fields[LAYERS]
    if not isinstance(found, list) or len(found) != layers or any(each not in values for each in found):
        options = " or ".join(shown(value) for value in values)
        refuse(name, found, f"a list of {layers} values, each {options},")
    return found


def _types(letters: str) -> list[str]:
    return [SLIDING if letter == "S" else FULL for letter in letters]


def _write_layer_types(config: ModelConfig) -> Fields:
    sliding = "S" in config.layer_kinds
    return {
        "use_sliding_window": sliding, "sliding_window": config.sliding_window if sliding else None,
        "layer_types": _types(config.layer_kinds),
    }  # fmt: skip


def _read_window(fields: Fields) -> int | None:
    """The window, set to null where `use_sliding_window` is false."""
    used = fields["use_sliding_window"]
    if type(used) is not bool:
        refuse("use_sliding_window", used, "true or false")
    if not used:
        fields["sliding_window"] = None
    return _window(fields)


def _window(fields: Fields) -> int | None:
    window = fields["sliding_window"]
    if window is not None and (type(window) is not int or window < 1):
        refuse("sliding_window", window, "a positive integer")
    return window


def _read_layer_types(fields: Fields) -> Fields:
    window, first = _read_window(fields), fields.get("max_window_layers", 28)
    if type(first) is not int:
        refuse("max_window_layers", first, "an integer")
    sliding = [window is not None and layer >= first for layer in range(fields[LAYERS])]
    fields.setdefault("layer_types", [SLIDING if each else FULL for each in sliding])
    types = _list_of(fields, "layer_types", (FULL, SLIDING) if window is not None else (FULL,))
    fields["use_sliding_window"] = SLIDING in types
    fields["sliding_window"] = window if SLIDING in types else None
    return _layers("".join("S" if each == SLIDING else "L" for each in types), window)


LAYER_TYPES = Translation(_write_layer_types, _read_layer_types)  # Qwen


def _write_no_rope(config: ModelConfig) -> Fields:
    rotary = config.positional_encoding == "rotary"
    no_rope = [int(rotary and letter != "N") for letter in config.layer_kinds]
    return _write_layer_types(config) | {"no_rope_layers": no_rope}


def _read_no_rope(fields: Fields) -> Fields:
    window, interval = _read_window(fields), fields.get("no_rope_layer_interval", 4)
    if type(interval) is not int or interval < 1:
        refuse("no_rope_layer_interval", interval, "a positive integer")
    fields.setdefault("no_rope_layers", [int(layer % interval != 0) for layer in range(1, fields[LAYERS] + 1)])
    rotary = [bool(each) for each in _list_of(fields, "no_rope_layers", (0, 1))]
    sliding = [window is not None and not each for each in rotary]
    fields.setdefault("layer_types", [SLIDING if each else FULL for each in sliding])
    types = _list_of(fields, "layer_types", (FULL, SLIDING) if window is not None else (FULL,))
    fields["use_sliding_window"] = SLIDING in types
    fields["sliding_window"] = window if SLIDING in types else None
    mixed = any(rotary)  # some layers have rotary positions
    if mixed and any(kind == SLIDING and not each for kind, each in zip(types, rotary, strict=True)):
        refuse("layer_types", types, "sliding windows in layers with rotary positions")
    letters = ["S" if kind == SLIDING else "L" for kind in types]
    if mixed:
        letters = [letter if each else "N" for letter, each in zip(letters, rotary, strict=True)]
    ours = _layers("".join(letters), window)
    if not mixed:
        fields.pop("rope_scaling", None)  # of no layer
        ours |= {"positional_encoding": "none", "rope_scaling": None}
    return ours


NO_ROPE = Translation(_write_no_rope, _read_no_rope)  # SmolLM3


def _read_one_window(fields: Fields) -> Fields:
    window, types = _window(fields), fields.pop("layer_types", None)
    kind = FULL if window is None else SLIDING
    if types is not None and types != [kind] * fields[LAYERS]:
        refuse("layer_types", types, f"{kind} in all layers, by its sliding_window,")
    return {"sliding_window": window}


WINDOW = Translation(lambda config: {"sliding_window": config.sliding_window}, _read_one_window)  # Mistral

NEO_KINDS = {"S": "local", "L": "global"}


def _write_neo_layers(config: ModelConfig) -> Fields:
    layers = [NEO_KINDS[letter] for letter in config.layer_kinds]
    window = {"window_size": config.sliding_window} if "local" in layers else {}
    return {"attention_layers": layers, "attention_types": _grouped(layers)} | window


def _grouped(layers: list[str]) -> list[Any]:
    """[["global", "local", "global", "local"]] as [[["global", "local"], 2]]."""
    period = next(
        p for p in range(1, len(layers) + 1) if not len(layers) % p and layers == layers[:p] * (len(layers) // p)
    )
    return [[layers[:period], len(layers) // period]]


def _read_neo_layers(fields: Fields) -> Fields:
    types = fields.get("attention_types", [[["global", "local"], 12]])
    layers: list[Any] = []
    try:
        for kinds, count in types:
            if len(layers) + len(kinds) * count > fields["num_layers"]:
                raise ValueError
            layers += list(kinds) * count
    except (TypeError, ValueError):
        layers = []
    if len(layers) != fields["num_layers"] or any(each not in NEO_KINDS.values() for each in layers):
        refuse("attention_types", types, f"lists of global and local for {fields['num_layers']} layers")
    if fields.setdefault("attention_layers", layers) != layers:
        refuse("attention_layers", fields["attention_layers"], "those of attention_types")
    fields["attention_types"] = _grouped(layers)
    window = fields.pop("window_size", 256)
    if type(window) is not int or window < 1:
        refuse("window_size", window, "a positive integer")
    if "local" in layers:
        fields["window_size"] = window
    return _layers("".join("S" if each == "local" else "L" for each in layers), window)


NEO_LAYERS = Translation(_write_neo_layers, _read_neo_layers)
NEO_SCALE = Translation(lambda config: {}, lambda fields: {"attention_scale": 1.0})


# --- flags


def flag(name: str, ours: str, on: Any, off: Any) -> Translation:
    """A field that is true for one value of our field, and false for another."""

    def read(fields: Fields) -> Fields:
        value = fields[name]
        if type(value) is not bool:
            refuse(name, value, "true or false")
        return {ours: on if value else off}

    return Translation(lambda config: {name: getattr(config, ours) == on}, read)
