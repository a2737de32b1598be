"""llama2.c's files: the network in `model.bin`, the tokenizer in `tokenizer.bin`.

    model = load_llama2c("stories15M.bin")

The network is Llama's, always with rope_theta=10000 and norm_eps=1e-5, in float32. Version 0 has no magic number; its
header is seven integers, with a negative vocabulary size if the output projection is not tied. Version 1
begins with `ak42` and has the weights in another order. Both interleave the rotary pairs of queries and keys.

Left out: version 2, which is quantized.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinylm.bundle import rebuild_model
from tinylm.checks import require
from tinylm.errors import ConfigError
from tinylm.files import atomic_folder, file_size, open_input, write_text
from tinylm.interop.forms import misfits, swap_rotary_pairs, weight_shapes
from tinylm.interop.plain import plain_weights
from tinylm.locate import LLAMA2C_MAGIC, is_llama2c
from tinylm.model import ModelConfig, TransformerLM, parameter_count
from tinylm.model.positional import rotary_table
from tinylm.targets import FolderKind, check_target
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.characters import BYTE_NAMES, SPACE
from tinylm.tokenizer.formats.merges import reading
from tinylm.tokenizer.formats.scores import from_pieces, to_pieces

SIZES = ("d_model", "d_ff", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "max_seq_len")
HEADER = struct.Struct("<7i")
HEADER_1 = 256  # bytes of the header of version 1
FORM = {"qk_norm": False, "rope_theta": 10000.0, "norm_eps": 1e-5}
FITS = {name: (value,) for name, value in FORM.items()}
ROTARY = "rotary"  # tables of cosines and sines, which llama2.c no longer reads
NETWORK = ("attention.query", "attention.key", "attention.value", "attention.output")
GATED = ("feedforward.gate", "feedforward.output", "feedforward.input")
ORDERS = {  # version -> modules; those of blocks stand for one weight of every block
    0: ("embedding", "attention_norm", *NETWORK, "feedforward_norm", *GATED, "final_norm", ROTARY, "head"),
    1: ("attention_norm", "feedforward_norm", "final_norm", "embedding", *NETWORK, *GATED, "head"),
}
OUTER = ("embedding", "final_norm", ROTARY, "head")
PAIRED = (".query.weight", ".key.weight")
MODEL, TOKENIZER, README = "model.bin", "tokenizer.bin", "README.md"
USE = """# A model of llama2.c

Written by tinylm. In this folder, with llama2.c's program: `run model.bin -z tokenizer.bin -i "Once upon a time"`
"""
LLAMA2C_FOLDER = FolderKind(
    "a folder of llama2.c",
    frozenset((MODEL, TOKENIZER, README)),
    README,
    rb"# A model of llama2\.c\n\nWritten by tinylm\.",
)


class Header(NamedTuple):
    """The beginning of a model file: version, config and number of bytes."""

    version: int
    config: ModelConfig
    size: int


def load_llama2c(path: str | Path) -> TransformerLM:
    """The model of a llama2.c file, in evaluation mode.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, quantized, or not a model of llama2.c.
        NumericError: if a weight is NaN or infinite.
    """
    path = Path(path)
    size = file_size(path)
    with reading(path, "a model of llama2.c"), open_input(path) as file:
        header = _header(file.read(HEADER_1))
        config = header.config
        numbers = parameter_count(config) + (config.max_seq_len * config.head_dim if header.version == 0 else 0)
        expected = header.size + 4 * numbers
        require(size == expected, f"has {size:,} bytes, its header describes {expected:,}")
        file.seek(header.size)
        weights = {}
        for name, shape in _shapes(config, header.version):
            values = np.fromfile(file, dtype="<f4", count=math.prod(shape))
            weights[name] = torch.from_numpy(values.astype(np.float32, copy=False)).view(shape)
        _check_rotary(weights.pop(ROTARY, None), config)
    for name in weights:
        if name.endswith(PAIRED):
            weights[name] = swap_rotary_pairs(weights[name], config.head_dim, interleaved=False)
    return rebuild_model(config.to_dict(), weights, source=str(path)).eval()


def _header(head: bytes) -> Header:
    require(is_llama2c(head), "is not a model of llama2.c")
    version, begin = 0, 0
    if head.startswith(LLAMA2C_MAGIC):
        version, begin = struct.unpack_from("<i", head, 4)[0], 8
        require(version != 2, "is quantized (version 2); export it with llama2.c's export.py --version 0")
        require(version == 1 and len(head) == HEADER_1, f"has version {version}; tinylm reads 0 and 1")
    sizes = dict(zip(SIZES, HEADER.unpack_from(head, begin), strict=True))
    tied = sizes["vocab_size"] > 0 if version == 0 else bool(head[begin + HEADER.size])
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    config = ModelConfig(**sizes, **FORM, tie_embeddings=tied)
    return Header(version, config, HEADER_1 if version else HEADER.size)


def _shapes(config: ModelConfig, version: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of our weights in the order of a file."""
    shapes = weight_shapes(config) | {ROTARY: torch.Size((2, config.max_seq_len, config.head_dim // 2))}
    for module in ORDERS[version]:
        if module == ROTARY:
            names = [ROTARY]
        elif module in OUTER:
            names = [f"{module}.weight"]
        else:
            names = [f"blocks.{layer}.{module}.weight" for layer in range(config.num_layers)]
        yield from ((name, tuple(shapes[name])) for name in names if name in shapes)


def _check_rotary(table: Tensor | None, config: ModelConfig) -> None:
    """Refuses rotary tables of another rope_theta, which the header does not record."""
    if table is None or not table.any() or config.max_seq_len == 1:
        return
    expected = rotary_table(2, config.head_dim, config.rope_theta)[:, 1].float()
    require(
        torch.allclose(table[:, 1], expected, atol=1e-3),
        f"its rotary table has another base than {config.rope_theta:g}, the one that run.c computes with",
    )


def export_llama2c(model: TransformerLM, tokenizer: Tokenizer, folder: str | Path, overwrite: bool = False) -> None:
    """Writes a folder with model.bin (version 0) and tokenizer.bin, which run.c reads, atomically.

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced, or is something else.
        ConfigError: if the architecture is not Llama's with the constants of run.c, or the tokenizer is not like Llama
            2's; names the field.
    """
    check_target(folder, LLAMA2C_FOLDER, overwrite)
    state = {name: tensor.float() for name, tensor in plain_weights(model, "an export").items()}
    config = model.config
    for name in misfits(config, FITS):
        value, default = config.to_dict()[name], ModelConfig(vocab_size=1).to_dict()[name]
        raise ConfigError(f"{name}={value}: llama2.c computes only {name}={FORM.get(name, default)}")
    entries = _entries(tokenizer, config.vocab_size)
    with atomic_folder(folder) as new:
        with (new / MODEL).open("wb") as file:
            _write_model(file, state, config)
        longest = max(len(piece) for piece, _ in entries)
        data = [struct.pack("<i", longest), *(struct.pack("<fi", score, len(each)) + each for each, score in entries)]
        (new / TOKENIZER).write_bytes(b"".join(data))
        write_text(new / README, USE)


def _write_model(file: BinaryIO, state: dict[str, Tensor], config: ModelConfig) -> None:
    state = state | {ROTARY: rotary_table(config.max_seq_len, config.head_dim, config.rope_theta).float()}
    tied = 1 if config.tie_embeddings else -1
    sizes = (config.d_model, config.ff_width, config.num_layers, config.num_heads, config.kv_heads)
    file.write(HEADER.pack(*sizes, tied * config.vocab_size, config.max_seq_len))
    for name, _ in _shapes(config, 0):
        weight = state[name]
        if name.endswith(PAIRED):
            weight = swap_rotary_pairs(weight, config.head_dim, interleaved=True)
        file.write(weight.contiguous().numpy().astype("<f4", copy=False).tobytes())


# --- tokenizer

# run.c uses id 1 for the beginning of a text, and 3 + b for a byte b without a piece.
UNKNOWN_ID, BEGIN, END, FIRST_BYTE = 0, 1, 2, 3
SPELLED = {BEGIN: "\n<s>\n", END: "\n</s>\n"}  # names of special tokens in a file
LARGEST_TOKENIZER = 64 << 20  # bytes


def read_tokenizer_bin(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.bin, in which `<s>` begins and ends a text.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, or not a tokenizer of llama2.c.
    """
    path = Path(path)
    with open_input(path) as file:
        data = file.read(LARGEST_TOKENIZER + 1)
    with reading(path, "a tokenizer of llama2.c"):
        require(len(data) <= LARGEST_TOKENIZER, f"has more than {LARGEST_TOKENIZER:,} bytes")
        names, scores, place = [], [], 4
        while place < len(data):
            require(place + 8 <= len(data), "ends within a token; is it a tokenizer.bin?")
            score, size = struct.unpack_from("<fi", data, place)
            place += 8 + size
            require(size > 0 and place <= len(data), "ends within a token; is it a tokenizer.bin?")
            scores.append(score)
            names.append(data[place - size : place].decode("utf-8"))
        for token, spelled in SPELLED.items():
            require(names[token] == spelled, f"token {token} is {names[token]!r}, not {spelled!r}")
            names[token] = spelled.strip()
        for byte, name in enumerate(BYTE_NAMES):
            token = FIRST_BYTE + byte
            require(names[token] == name, f"token {token} is {names[token]!r}, not {name!r}")
        names = [name.replace(" ", SPACE) for name in names]
        require(len({*names}) == len(names), "has two tokens of one name")
        tokenizer = from_pieces(names, scores, {UNKNOWN_ID, BEGIN, END})
        return tokenizer.with_marks(BEGIN, BEGIN, [BEGIN, END])


def _entries(tokenizer: Tokenizer, rows: int) -> list[tuple[bytes, float]]:
    """The pieces and scores of a model with `rows` embeddings, in the order of their ids."""
    if tokenizer.vocab_size > rows:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {rows}")
    pieces = to_pieces(tokenizer, "llama2.c")
    bytes_ = [pieces.names.get(FIRST_BYTE + byte) for byte in range(256)]
    if (
        tokenizer.marks.begin != BEGIN
        or bytes_ != BYTE_NAMES
        or not pieces.prefix
        or SPACE not in pieces.names.values()
    ):
        raise ConfigError(
            "tokenizer: llama2.c needs Llama 2's: <s> is 1, the bytes are 3 to 258, a space begins a text"
        )
    if pieces.plain:
        raise ConfigError(
            f"tokenizer: llama2.c does not know added tokens, such as {pieces.names[min(pieces.plain)]!r}"
        )
    names = {token: f"\n<pad {token}>\n" for token in range(rows)} | pieces.names
    names |= {token: SPELLED.get(token, name) for token, name in pieces.names.items()}
    return [(names[token].replace(SPACE, " ").encode(), pieces.scores.get(token, 0.0)) for token in range(rows)]
