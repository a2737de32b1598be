"""Fields of config.json for rotary positions: base, share of the channels, and scaling to longer contexts."""

import math
from collections.abc import Iterable
from typing import Any

from tinylm.errors import ConfigError
from tinylm.interop.fields import Fields, Translation, is_nothing, refuse, shown
from tinylm.model import ModelConfig

SCALINGS = {  # rope_type -> foreign name: our name, default; `...` marks a required field
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
    """Our rope_scaling; also completes the foreign one in `fields`."""
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
