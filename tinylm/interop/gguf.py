"""GGUF, the format of llama.cpp: one file with network, tokenizer and chat template. The package `gguf` writes it.

    export_gguf(model, tokenizer, "model.gguf", "q8_0")        # llama-cli -m model.gguf -p "Once upon a time"

llama.cpp computes the architecture that the file names and ignores other settings. A config that it has no name for is
refused.
`gpt2` needs gelu_tanh: llama.cpp has no exact GELU there. Biases that gpt2 always has are written as zeros.

Left out: sliding windows, tokenizers of characters and words.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.errors import ConfigError
from tinylm.files import atomic_write
from tinylm.interop.forms import grouped, misfits, modules, swap_rotary_pairs, weight_shapes
from tinylm.interop.gguf_vocabulary import add_tokenizer, gguf_vocabulary
from tinylm.interop.plain import plain_weights
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.positional import rotary_table
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer import Tokenizer

SIGN = "exported by tinylm"
GGUF = FileKind("a GGUF file", rb"GGUF.{,1024}" + SIGN.encode())
DTYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}  # ours -> gguf's
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
LARGEST_F16 = 65504.0
BLOCK_SIZE = 32  # weights of q8_0 that share a scale
EXACT = ("position_embd.weight", "rope_freqs.weight")  # always float32, as vectors are

OUTER = {"embedding": "token_embd", "positions": "position_embd", "final_norm": "output_norm", "head": "output"}
BLOCK = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.output": "attn_output", "attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm",
    "feedforward_norm": "ffn_norm", "feedforward.gate": "ffn_gate", "feedforward.input": "ffn_up",
    "feedforward.output": "ffn_down",
}  # fmt: skip
JOINED = dict.fromkeys(("attention.query", "attention.key", "attention.value"), "attn_qkv")


@dataclass(frozen=True)
class Architecture:
    """A network of llama.cpp.

    Attributes:
        fits: field of ModelConfig -> the supported values; () stands for any value
        block: name of our module within a block -> llama.cpp's name
        interleaved: whether rotary pairs are (2i, 2i + 1)
        biased: whether it always has biases
    """

    fits: Mapping[str, tuple[Any, ...]]
    block: Mapping[str, str] = dataclasses.field(default_factory=lambda: BLOCK)
    interleaved: bool = False
    biased: bool = False


ANY: tuple[Any, ...] = ()
ROTARY = {"norm_eps": ANY, "rope_theta": ANY, "rope_scaling": ANY, "qk_norm": (False,), "bias": (False,)}
ARCHITECTURES = {  # in order of preference
    "qwen2": Architecture(ROTARY | {"qkv_bias": (True,)}),
    "llama": Architecture(ROTARY | {"bias": (False, True), "qkv_bias": ANY, "d_head": ANY}, interleaved=True),
    "qwen3": Architecture(ROTARY | {"qk_norm": (True,), "d_head": ANY}),
    "gpt2": Architecture(
        {"positional_encoding": ("learned",), "norm": ("layernorm",), "norm_eps": ANY, "activation": ("gelu_tanh",)}
        | {"qk_norm": (False,), "bias": (False, True), "qkv_bias": ANY, "rope_theta": ANY},
        BLOCK | JOINED, biased=True,
    ),
}  # fmt: skip


def export_gguf(
    model: TransformerLM,
    tokenizer: Tokenizer,
    path: str | Path,
    dtype: str = "f32",
    *,
    name: str | None = None,
    chat_template: str | Sequence[Mapping[str, str]] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a GGUF file atomically.

    Args:
        model: a standard model
        tokenizer: the model's tokenizer
        path: the file
        dtype: of matrices: f32, f16 or q8_0, where a matrix whose rows are not a multiple of 32 becomes f16. Vectors
            and position embeddings are f32
        name: name of the model in the file. Default: the file's
        chat_template: Jinja template of conversations, or several, each with a `name` and a `template`
        overwrite: replace an earlier export

    Returns:
        llama.cpp's name of the architecture

    Raises:
        CannotCreateError: if the file exists and is not to be replaced, or is something else.
        ConfigError: if the config or the tokenizer has no counterpart, with the field; if a weight is too large for
            f16; if the package gguf is missing.
    """
    check_target(path, GGUF, overwrite)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    gguf = require_gguf()
    state = plain_weights(model, "an export")
    kind = choose_architecture(model.config)
    writer = gguf.GGUFWriter(None, kind)
    writer.add_description(SIGN)
    writer.add_name(name or Path(path).stem)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, FILE_TYPES[dtype])))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, model.config, kind)
    add_tokenizer(writer, gguf, tokenizer, gguf_vocabulary(tokenizer, model.config.vocab_size))
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _add_weights(writer, gguf, state, model.config, kind, dtype)
    with atomic_write(path) as file:
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return kind


def require_gguf() -> Any:
    """The package gguf; ConfigError if it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError("GGUF files are written by the package gguf; install it: pip install gguf") from error


# --- network


def choose_architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the architecture that computes what a config describes.

    Raises:
        ConfigError: if there is none; names the fields that do not fit the nearest one.
    """
    found = {kind: misfits(config, each.fits) for kind, each in ARCHITECTURES.items()}
    if config.kv_heads != config.num_heads:
        found["gpt2"].append("num_kv_heads")
    nearest = min(found, key=lambda kind: len(found[kind]))
    if found[nearest]:
        values, fits = config.to_dict(), ARCHITECTURES[nearest].fits
        given = " and ".join(f"{name}={values[name]}" for name in found[nearest])
        default = ModelConfig(vocab_size=1).to_dict()
        remedy = [f"{name}={' or '.join(map(str, fits.get(name, (default[name],))))}" for name in found[nearest]]
        remedies = " and ".join(remedy)
        raise ConfigError(f"{given}: not computed by llama.cpp with the other fields; {remedies} would fit {nearest}")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "linear" and nearest != "llama":
        raise ConfigError(f"rope_scaling.kind={scaling.kind}: not computed by llama.cpp's {nearest}; linear is")
    return nearest


def _add_config(writer: Any, config: ModelConfig, kind: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.num_heads)
    if kind == "gpt2":
        return writer.add_layer_norm_eps(config.norm_eps)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        writer.add_string(f"{kind}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    elif config.rope_scaling is not None:
        writer.add_rope_scaling_attn_factors(_rotary_scale(config))


def _add_weights(writer: Any, gguf: Any, state: dict[str, Tensor], config: ModelConfig, kind: str, dtype: str) -> None:
    state = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in _weights(state, config, ARCHITECTURES[kind]).items():
        data, stored = _stored(name, tensor.numpy(), dtype, gguf)
        writer.add_tensor(name, data, raw_dtype=stored)


def _weights(state: dict[str, Tensor], config: ModelConfig, architecture: Architecture) -> dict[str, Tensor]:
    """llama.cpp's weights, by name, in float32."""
    shapes = weight_shapes(dataclasses.replace(config, bias=True, qkv_bias=None) if architecture.biased else config)
    weights = {}
    for theirs, ours in grouped(shapes, modules("blk", architecture.block, **OUTER)).items():
        parts = [state[name] if name in state else torch.zeros(shapes[name]) for name in ours]
        if architecture.interleaved and theirs.split(".")[-2] in ("attn_q", "attn_k"):
            parts = [swap_rotary_pairs(part, config.head_dim, interleaved=True) for part in parts]
        weights[theirs] = torch.cat(parts).contiguous()
    if config.rope_scaling is not None and config.rope_scaling.kind != "linear":
        weights["rope_freqs.weight"] = _rotary_divisors(config)
    return weights


def _rotary_divisors(config: ModelConfig) -> Tensor:
    """The numbers by which llama.cpp divides the rotary frequencies, (E/2,)."""
    tables = [
        rotary_table(max(config.max_seq_len, 2), config.head_dim, config.rope_theta, scaling)
        for scaling in (None, config.rope_scaling)
    ]
    plain, scaled = (torch.atan2(sin[1], cos[1]) for cos, sin in tables)  # the angles at position 1
    return (plain / scaled).float()


def _rotary_scale(config: ModelConfig) -> float:
    """The factor of cosines and sines."""
    return float(rotary_table(config.max_seq_len, config.head_dim, config.rope_theta, config.rope_scaling)[0, 0, 0])


def _stored(name: str, values: np.ndarray, dtype: str, gguf: Any) -> tuple[np.ndarray, Any]:
    """A weight as it is stored, and its type."""
    if dtype == "f32" or values.ndim == 1 or name in EXACT:
        dtype = "f32"
    elif dtype == "q8_0" and values.shape[-1] % BLOCK_SIZE:
        dtype = "f16"
    if dtype != "f32" and np.abs(values).max() > LARGEST_F16:
        raise ConfigError(f"--dtype {dtype}: {name} has weights beyond {LARGEST_F16:g}; use f32")
    stored = getattr(gguf.GGMLQuantizationType, DTYPES[dtype])
    return gguf.quants.quantize(values, stored), stored
