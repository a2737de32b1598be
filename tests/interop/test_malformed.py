"""Malformed and foreign folders: `tinylm export` names the field or the file in one line, and writes nothing."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.tables import SHAPE
from tests.strategies import random_model
from tinylm.commands import main
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION, TOKENIZER = "generation_config.json", "tokenizer.json"
NORM = "model.layers.1.input_layernorm.weight"
Fault = tuple[Callable[[Path], object], str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Llama with an untied head and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    config = ModelConfig(**SHAPE | dict(vocab_size=257, tie_embeddings=False, qk_norm=False))
    export_huggingface(random_model(config, dtype=torch.float32), ByteTokenizer([END_OF_TEXT]), folder)
    return folder


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def field(name: str, value: object, file: str = CONFIG) -> Fault:
    """A field of a JSON file set to another value, and its name in the message."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(values | {name: value}))

    return change, name


def without(name: str) -> Fault:
    def change(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        del values[name]
        (folder / CONFIG).write_text(json.dumps(values))

    return change, name


def weight(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return rewrite


def put(name: str, tensor: torch.Tensor) -> Fault:
    return weight(lambda weights: weights.update({name: tensor})), name


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def shards(table: object) -> Callable[[Path], object]:
    """The weights in one shard, and this index."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        names = load_file(folder / "a.safetensors")
        value = {"weight_map": dict.fromkeys(names, "a.safetensors") | table} if isinstance(table, dict) else table
        (folder / INDEX).write_text(json.dumps(value))

    return change


def only(name: str, content: bytes) -> Callable[[Path], object]:
    """These weights in place of the safetensors file."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return change


class Bomb:
    """A pickle that stops the test if it is ever opened."""

    def __reduce__(self):
        return pytest.exit, ("a pickle was opened",)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


NESTED = "[" * 50_000
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(64)
FAULTS: dict[str, Fault] = {
    "an empty folder": (empty, CONFIG),
    "no folder": (shutil.rmtree, "no such folder"),
    "no config": (remove(CONFIG), CONFIG),
    "an empty config": (text(CONFIG, ""), CONFIG),
    "a config of nested lists": (text(CONFIG, NESTED), CONFIG),
    "a config that is a list": (text(CONFIG, "[1]"), CONFIG),
    "a config in UTF-16": (lambda folder: (folder / CONFIG).write_bytes("{}".encode("utf-16")), CONFIG),
    "a config without fields": (text(CONFIG, "{}"), "model_type"),
    "a model_type that is a list": field("model_type", ["llama"]),
    "another model_type": field("model_type", "mamba"),
    "no vocab_size": without("vocab_size"),
    "no layers": without("num_hidden_layers"),
    "negative layers": field("num_hidden_layers", -2),
    "zero heads": field("num_attention_heads", 0),
    "a fraction of a layer": field("num_hidden_layers", 2.5),
    "layers in words": field("num_hidden_layers", "two"),
    "layers that are true": field("num_hidden_layers", True),
    "a billion layers": field("num_hidden_layers", 10**9),
    "a huge vocabulary": (field("vocab_size", 10**15)[0], CONFIG),
    "a huge context": (field("max_position_embeddings", 10**30)[0], "max_position_embeddings"),
    "a width in a list": field("hidden_size", [32]),
    "a feed-forward layer in an object": field("intermediate_size", {"a": 1}),
    "heads that do not divide": field("num_attention_heads", 5),
    "key/value heads that do not divide": field("num_key_value_heads", 3),
    "a negative head_dim": field("head_dim", -8),
    "an odd head_dim": field("head_dim", 7),
    "a NaN epsilon": field("rms_norm_eps", float("nan")),
    "a negative epsilon": field("rms_norm_eps", -1.0),
    "an epsilon in words": field("rms_norm_eps", "1e-5"),
    "an infinite theta": field("rope_theta", float("inf")),
    "a dropout of two": field("attention_dropout", 2),
    "a tie that is a word": field("tie_word_embeddings", "no"),
    "an unknown activation": field("hidden_act", "mish"),
    "an activation in an object": field("hidden_act", {"name": "silu"}),
    "an unknown rope_type": field("rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
    "a rope_type that is a number": field("rope_scaling", {"rope_type": 3}),
    "a scaling that is text": field("rope_scaling", "linear"),
    "a NaN factor": field("rope_scaling", {"type": "linear", "factor": float("nan")}),
    "a nested factor": field("rope_scaling", {"type": "linear", "factor": {"x": [1]}}),
    "a negative original context": (
        field("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": -1})[0],
        "original_max",
    ),
    "layer types": field("layer_types", [{"a": 1}]),
    "quantization": field("quantization_config", {"quant_method": "gptq", "bits": 4}),
    "code of its own": field("auto_map", {"AutoModelForCausalLM": "modeling.X"}),
    "an unknown field": field("residual_multiplier", 0.22),
    "a generation config that is a list": (text(GENERATION, "[]"), GENERATION),
    "a damaged generation config": (text(GENERATION, '{"top_k"'), GENERATION),
    "suppressed tokens": field("suppress_tokens", [1, 2], GENERATION),
    "no weights": (remove(WEIGHTS), WEIGHTS),
    "empty weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), WEIGHTS),
    "GGUF named safetensors": (lambda folder: (folder / WEIGHTS).write_bytes(GGUF), WEIGHTS),
    "a checkpoint named safetensors": (
        lambda folder: torch.save({"a": torch.ones(3)}, folder / WEIGHTS), WEIGHTS
    ),
    "weights that are a folder": (lambda folder: (remove(WEIGHTS)(folder), (folder / WEIGHTS).mkdir()), WEIGHTS),
    "a pickle": (only("pytorch_model.bin", pickle.dumps(Bomb())), "pytorch_model.bin"),
    "a GGUF file alone": (only("model.gguf", GGUF), WEIGHTS),
    "a missing weight": (weight(lambda weights: weights.pop(NORM)), NORM),
    "an unknown weight": put("model.layers.0.self_attn.q_proj.lora_A", torch.ones(2)),
    "another layer": put("model.layers.2.input_layernorm.weight", torch.ones(32)),
    "a weight of another shape": put(NORM, torch.ones(31)),
    "a weight of no shape": put(NORM, torch.tensor(1.0)),
    "a weight of integers": put(NORM, torch.ones(32, dtype=torch.int8)),
    "a weight that is NaN": put(NORM, torch.full((32,), float("nan"))),
    "an index that is a list": (shards([]), INDEX),
    "an index of no files": (shards({NORM: 3}), INDEX),
    "a shard outside the folder": (shards({NORM: "../m/a.safetensors"}), "../m/a.safetensors"),
    "a shard with its full path": (shards({NORM: "/etc/passwd"}), "/etc/passwd"),
    "a missing shard": (shards({NORM: "b.safetensors"}), "b.safetensors"),
    "no tokenizer": (remove(TOKENIZER), TOKENIZER),
    "a damaged tokenizer": (text(TOKENIZER, "{"), TOKENIZER),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line_and_nothing_is_written(fault, whole, tmp_path, capfd):
    change, name = FAULTS[fault]
    folder, out = tmp_path / "m", tmp_path / "out"
    shutil.copytree(whole, folder)
    change(folder)
    before = sorted(path.name for path in tmp_path.iterdir())
    code = main(["export", "--model", str(folder), "--to", "tinylm", "--out", str(out)])
    lines = capfd.readouterr().err.splitlines()
    assert code in (65, 66), lines
    assert len([line for line in lines if line.startswith("tinylm: error: ")]) == 1 and len(lines) <= 2, lines
    assert name in lines[-1].replace(str(folder), "m") and len(lines[-1]) < 600
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_folder_without_a_fault_is_read(whole, tmp_path, capfd):
    assert main(["export", "--model", str(whole), "--to", "tinylm", "--out", str(tmp_path / "out")]) == 0
    assert "error" not in capfd.readouterr().err
