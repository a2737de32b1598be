"""Checks of values from configs and arguments."""

from importlib.util import find_spec
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tinylm.errors import ConfigError, did_you_mean

LINKED = ("model.network.vocab_size", "data.max_seq_len")  # options taken from the data and from the model

# Names of our fields in other projects: refused, with the right name in the message.
FOREIGN_NAMES = {
    "n_layer": "num_layers", "n_layers": "num_layers", "num_hidden_layers": "num_layers", "depth": "num_layers",
    "n_head": "num_heads", "n_heads": "num_heads", "num_attention_heads": "num_heads", "heads": "num_heads",
    "n_kv_head": "num_kv_heads", "n_kv_heads": "num_kv_heads", "n_query_groups": "num_kv_heads",
    "num_key_value_heads": "num_kv_heads",
    "n_embd": "d_model", "hidden_size": "d_model", "embed_dim": "d_model", "dim": "d_model", "width": "d_model",
    "block_size": "max_seq_len", "context_length": "max_seq_len", "n_ctx": "max_seq_len", "n_positions": "max_seq_len",
    "max_position_embeddings": "max_seq_len", "seq_len": "max_seq_len", "context": "max_seq_len",
    "intermediate_size": "d_ff", "n_inner": "d_ff", "ffn_dim": "d_ff",
    "hidden_act": "activation", "activation_function": "activation",
    "head_dim": "d_head", "head_size": "d_head", "partial_rotary_factor": "rotary_fraction",
    "rotary_pct": "rotary_fraction", "rope_type": "kind", "original_max_position_embeddings": "original_max_seq_len",
    "rope_base": "rope_theta", "tie_word_embeddings": "tie_embeddings", "padded_vocab_size": "vocab_size",
    "learning_rate": "lr", "min_learning_rate": "min_lr", "warmup_iters": "warmup_steps",
    "num_warmup_steps": "warmup_steps", "max_iters": "max_steps", "dataset": "corpus",
    "gradient_accumulation_steps": "micro_batch_size", "per_device_train_batch_size": "micro_batch_size",
    "grad_clip": "gradient_clip_val", "epochs": "max_epochs", "num_epochs": "max_epochs", "steps": "max_steps",
    "num_train_epochs": "max_epochs", "num_steps": "max_steps", "gpus": "devices", "device": "accelerator",
    "dtype": "precision", "out_dir": "dir", "output_dir": "dir", "eval_interval": "val_check_interval",
    "padding_multiple": "vocab_multiple", "make_vocab_size_divisible_by": "vocab_multiple",
    "data_path": "corpus", "train_file": "corpus", "input": "corpus", "optim": "name",
}  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_package(name: str) -> None:
    """Raises ConfigError unless an optional package is installed."""
    require(find_spec(name) is not None, f"{name} is not installed; install it: pip install {name}")


def check_types(config: Any, prefix: str = "") -> None:
    """Checks the types of a dataclass's fields, converting integers to float and lists to tuples where declared.

    ConfigError names the field, after `prefix`, for example one with "yes" where a bool is declared, or with an unknown
    choice.
    """
    for field, expected in get_type_hints(type(config)).items():
        value, name = getattr(config, field), prefix + field
        origin, options = get_origin(expected), get_args(expected)
        if origin in (Union, UnionType) and get_origin(options[0]) is Literal:  # or a plug-in
            if type(value) in options:
                continue
            origin, options = Literal, get_args(options[0])
        if origin is Literal:
            hint = did_you_mean(str(value), options)
            require(value in options, f"{name} must be one of {', '.join(options)}, got {value!r}{hint}")
        elif origin is tuple and Ellipsis in options:
            fits = isinstance(value, list | tuple) and all(type(each) is options[0] for each in value)
            require(fits, f"{name} must be a list of {options[0].__name__}, got {value!r}")
            object.__setattr__(config, field, tuple(value))
        elif origin is tuple:
            require(len(value) == len(options), f"{name} must have {len(options)} values")
        else:
            allowed = [get_origin(kind) or kind for kind in options or (expected,)]
            if float in allowed and type(value) is int:
                object.__setattr__(config, field, float(value))
                continue
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            require(type(value) in allowed, f"{name} must be {names}, got {value!r}")
