"""GGUF, the format of llama.cpp: one file with network, tokenizer and chat template. The package `gguf` writes it.

    export_gguf(model, tokenizer, "model.gguf", "q8_0")        # llama-cli -m model.gguf -p "Once upon a time"

llama.cpp computes what its name of an architecture says and ignores the rest, and it splits text as its name of a
pre-tokenizer says. A config or a pattern without such a name is refused. `gpt2` needs gelu_tanh: llama.cpp has no exact
GELU there. Biases that gpt2 always has are written as zeros.

Left out: sliding windows, tokenizers of characters and words.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.errors import ConfigError, notice
from tinylm.files import atomic_write
from tinylm.interop.forms import check_plain, misfits, swap_rotary_pairs, their_names, weight_shapes
from tinylm.interop.sentencepiece import UNKNOWN as UNKNOWN_PIECE
from tinylm.interop.sentencepiece import check_added, to_pieces
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.positional import rotary_table
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from tinylm.tokenizer.alphabet import ALPHABET, BYTE_IDS
from tinylm.tokenizer.characters import BYTE_NAMES, CharacterBPE
from tinylm.tokenizer.fast.pretokenize import DIGITS, QWEN2
from tinylm.tokenizer.pipeline import PipelineTokenizer

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
        fits: field of ModelConfig -> the values that it computes; () stands for any value
        block: our module within a block -> theirs
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
    chat_template: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a GGUF file atomically.

    Args:
        model: a standard model
        tokenizer: the model's tokenizer
        path: the file
        dtype: of matrices: f32, f16 or q8_0, where a matrix whose rows are no multiple of 32 becomes f16. Vectors and
            position embeddings are f32
        name: name of the model in the file. Default: the file's
        chat_template: Jinja template of conversations
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
    check_plain(model, "an export")
    config = model.config
    kind = choose_architecture(config)
    vocabulary = _vocabulary(tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(None, kind)
    writer.add_description(SIGN)
    writer.add_name(name or Path(path).stem)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, FILE_TYPES[dtype])))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config, kind)
    _add_tokenizer(writer, gguf, tokenizer, vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    state = {weight: tensor.detach().cpu().float() for weight, tensor in model.state_dict().items()}
    for weight, tensor in _weights(state, config, ARCHITECTURES[kind]).items():
        data, stored = _stored(weight, tensor.numpy(), dtype, gguf)
        writer.add_tensor(weight, data, raw_dtype=stored)
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
        ConfigError: if there is none; names the fields that keep the nearest one from fitting.
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


def _weights(state: dict[str, Tensor], config: ModelConfig, architecture: Architecture) -> dict[str, Tensor]:
    """llama.cpp's weights, by name, in float32."""
    shapes = weight_shapes(dataclasses.replace(config, bias=True, qkv_bias=None) if architecture.biased else config)
    weights = {}
    for theirs, ours in their_names(shapes, OUTER, architecture.block, "blk.{}").items():
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


# --- tokenizer

# Our patterns -> llama.cpp's names. dbrx is llama-bpe without the rule that a word in the vocabulary is never merged.
PRE_TOKENIZERS = {"gpt2": "gpt-2", "gpt4": "dbrx", DIGITS: "smollm", QWEN2: "qwen2"}
NO_MERGES = ["! !"]  # stands for none, which llama.cpp refuses; it splits what is not a token into bytes again
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: gpt2 (byte-level BPE) or llama (pieces with scores)
        names: of all tokens
        types: of all tokens
        merges: of gpt2
        pre: name of the pre-tokenizer, of gpt2
        scores: of llama
        prefix: whether a space is put before every text
    """

    model: str
    names: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    scores: list[float]
    prefix: bool


def _vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The vocabulary of a model with `rows` embeddings; those without a token become unused ones."""
    if tokenizer.vocab_size > rows:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {rows}")
    characters = isinstance(tokenizer, PipelineTokenizer) and isinstance(tokenizer.core, CharacterBPE)
    found = _pieces(tokenizer, rows) if characters else _byte_level(tokenizer, rows)
    if len(set(found.names)) < rows:
        raise ConfigError("special_tokens: two tokens would have one name in GGUF; rename those like [PAD7]")
    if tokenizer.end_of_text is None and UNUSED not in found.types:
        last = 2 if characters else 11
        raise ConfigError(
            f"the tokenizer has no end-of-text token, in whose place llama.cpp would stop at token {last}"
        )
    return found


def _byte_level(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    core, plain = tokenizer, set()
    special = set(tokenizer.special_tokens.values())
    if isinstance(tokenizer, PipelineTokenizer):
        check_added(tokenizer, "llama.cpp")
        if tokenizer.prefix != "none":
            raise ConfigError("tokenizer: a space is put before texts, which llama.cpp does not do for byte-level BPE")
        if tokenizer.normalization:
            notice("llama.cpp does not normalize text to NFC: text in another form gets other ids there")
        core, plain = tokenizer.core, {token.id for token in tokenizer.added if not token.special}
    if isinstance(core, BPETokenizer):
        names, ids = core.names_and_ids()
        merges = [f"{names[left]} {names[right]}" for left, right in core.merges]
        pattern = core.pattern
    elif isinstance(core, ByteTokenizer):
        names, ids, merges, pattern = [ALPHABET[token] for token in BYTE_IDS], range(256), [], "gpt2"
    else:
        raise ConfigError(f"tokenizer: kind {tokenizer.kind} has no counterpart in llama.cpp; kind bpe has")
    if pattern not in PRE_TOKENIZERS:
        raise ConfigError(f"tokenizer: pattern {pattern!r} is none of llama.cpp's pre-tokenizers; pattern gpt2 is one")
    found = {token: name for name, token in zip(names, ids, strict=False) if token >= 0}
    added = {token: tokenizer.token_bytes[token].decode() for token in special | plain}
    if taken := {*found.values()} & {*added.values()} - {found.get(token) for token in added}:
        raise ConfigError(f"special_tokens: {min(taken)!r} is the name of an ordinary token in GGUF; rename it")
    types = _types({*found, *added}, special, plain, rows)
    return Vocabulary(
        "gpt2", _names(found | added, rows), types, merges or NO_MERGES, PRE_TOKENIZERS[pattern], [], False
    )


def _pieces(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    pieces = to_pieces(tokenizer, "llama.cpp")
    types = _types({*pieces.names}, pieces.special, pieces.plain, rows)
    for token, name in pieces.names.items():
        if name in BYTE_NAMES:
            types[token] = BYTE
        elif name == UNKNOWN_PIECE:
            types[token] = UNKNOWN
    scores = [pieces.scores.get(token, 0.0) for token in range(rows)]
    return Vocabulary("llama", _names(pieces.names, rows), types, [], "default", scores, pieces.prefix)


def _names(found: Mapping[int, str], rows: int) -> list[str]:
    return [found.get(token, f"[PAD{token}]") for token in range(rows)]


def _types(found: set[int], special: set[int], plain: set[int], rows: int) -> list[int]:
    kinds = {CONTROL: special, USER_DEFINED: plain, NORMAL: found}
    return [next((kind for kind, ids in kinds.items() if token in ids), UNUSED) for token in range(rows)]


def _add_tokenizer(writer: Any, gguf: Any, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.names)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.prefix)
    begin, end, stops = tokenizer.marks
    last = vocabulary.types.index(UNUSED) if end is None else end
    writer.add_add_bos_token(begin is not None)
    writer.add_add_eos_token(False)
    if begin is not None:
        writer.add_bos_token_id(begin)
    writer.add_eos_token_id(last)
    writer.add_pad_token_id(last)
    if UNKNOWN in vocabulary.types:
        writer.add_unk_token_id(vocabulary.types.index(UNKNOWN))
    others = [token for token in stops if token != end]
    for key, token in zip((gguf.Keys.Tokenizer.EOT_ID, gguf.Keys.Tokenizer.EOM_ID), others, strict=False):
        writer.add_uint32(key, token)
    if len(others) > 2:
        notice(f"llama.cpp will not stop at {', '.join(vocabulary.names[token] for token in others[2:])}")
