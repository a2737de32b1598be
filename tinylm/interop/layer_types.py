"""Fields of config.json for the attention of each layer: windows, and layers without rotary positions."""

from collections.abc import Collection
from typing import Any

from tinylm.interop.fields import FULL, LAYERS, SLIDING, Fields, Translation, refuse, shown
from tinylm.model import ModelConfig


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
