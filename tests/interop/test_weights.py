"""Damaged, incomplete or unsuitable files of weights are refused with one line that names the problem."""

import json
import pickle

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.interop.tables import SHAPE
from tests.strategies import random_ids, random_model
from tinylm.adapt import LoRAConfig, add_lora, quantize
from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError
from tinylm.interop import export_huggingface, load_huggingface, load_huggingface_model
from tinylm.model import ModelConfig
from tinylm.model.quantized import unpack

UNTIED = dict(tie_embeddings=False, qk_norm=False)


@pytest.fixture
def folder(tmp_path):
    """A Llama with an untied head."""
    export_huggingface(random_model(ModelConfig(**SHAPE | UNTIED), dtype=torch.float32), None, tmp_path / "m")
    return tmp_path / "m"


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def drop(name):
    return lambda weights: weights.pop(name)


def put(name, tensor):
    return lambda weights: weights.update({name: tensor})


NORM = "model.layers.1.input_layernorm.weight"
WRONG = {
    "missing": (drop(NORM), f"m: weights missing: {NORM}$"),
    "several missing": (lambda weights: [weights.pop(name) for name in [*weights][:6]], "missing: .* and 2 more"),
    "no head": (drop("lm_head.weight"), "weights missing: lm_head.weight"),
    "extra": (put("model.layers.2.input_layernorm.weight", torch.ones(32)), "not of this architecture: model.layers.2"),
    "an adapter": (put("base_model.lora_A.weight", torch.ones(32)), "not of this architecture: base_model.lora_A"),
    "another shape": (put(NORM, torch.ones(31)), rf"{NORM}: has shape \(31,\), config.json says \(32,\)"),
    "transposed": (put("model.layers.0.mlp.up_proj.weight", torch.ones(32, 44)), r"shape \(32, 44\), .* \(44, 32\)"),
    "quantized": (put(NORM, torch.ones(32, dtype=torch.int8)), f"{NORM}: has dtype torch.int8; quantized"),
    "another embedding": (put("model.embed_tokens.weight", torch.ones(9, 32)), r"shape \(9, 32\), .* \(278, 32\)"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit_the_config_are_named(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(DataError, match=message) as raised:
        load_huggingface_model(folder)
    assert "\n" not in str(raised.value)


def test_layers_with_adapters_are_refused_by_name(tmp_path):
    adapted = random_model(ModelConfig(**SHAPE), dtype=torch.float32)
    add_lora(adapted, LoRAConfig(targets=("blocks.1.attention.query",)))
    message = r"^an export: blocks\.1\.attention\.query has LoRA adapters; merge_lora and remove_lora first$"
    with pytest.raises(ConfigError, match=message):
        export_huggingface(adapted, None, tmp_path / "m")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_a_quantized_model_is_exported_with_the_weights_that_it_stands_for(bits, dtype, tmp_path, capsys):
    config = ModelConfig(**SHAPE | {"d_ff": 64}, qk_norm=False, bias=True)
    model = quantize(random_model(config, dtype=torch.float32), bits=bits, skip=["blocks.1.attention.*"]).to(dtype)
    assert export_huggingface(model, None, tmp_path / "m") == "LlamaForCausalLM"
    kind = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().err == (
        f"tinylm: an export: the 10 quantized layers are written as {kind}, with their dequantized values\n"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert {parameter.dtype for parameter in theirs.parameters()} == {dtype}
    layer = model.blocks[0].feedforward.gate
    scales = layer.scales.float()[:, None] if bits == 8 else layer.scales.float().repeat_interleave(32, dim=1)
    expected = ((layer.codes if bits == 8 else unpack(layer.codes)) * scales).to(dtype)
    assert torch.equal(theirs.model.layers[0].mlp.gate_proj.weight, expected)
    ids = random_ids(config, batch_size=3)  # 72 rows, which the kernels for few rows, in bfloat16, do not read
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(theirs(ids).logits.float(), model(ids).float(), rtol=0, atol=tolerance)


def test_truncated_files_are_named(folder):
    for name, message in (
        ("model.safetensors", r"model\.safetensors: is damaged"),
        ("config.json", "is not valid JSON"),
    ):
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
        with pytest.raises(DataError, match=message):
            load_huggingface_model(folder)


def test_a_copy_of_a_tied_head_must_equal_the_embedding(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(DataError, match=r"lm_head\.weight: differs from the embedding"):
        load_huggingface_model(folder)
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    assert load_huggingface_model(folder).config.tie_embeddings


def test_pickles_are_refused_and_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return (folder / "ran").touch, ()

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"pytorch_model\.bin: is a pickle, .*; convert it to safetensors"):
        load_huggingface_model(folder)
    assert not (folder / "ran").exists()


def test_missing_files_are_named(folder):
    for name, message in (("model.safetensors", r"has no model\.safetensors"), ("config.json", r"has no config\.json")):
        (folder / name).unlink()
        with pytest.raises(MissingInputError, match=message):
            load_huggingface_model(folder)
    with pytest.raises(MissingInputError, match=r"gpt2: no such folder; .* download it first"):
        load_huggingface("gpt2")


def shard(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    table = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return table


def test_missing_shards_and_shards_outside_the_folder_are_named(folder):
    whole = load_huggingface_model(folder).state_dict()
    index, table = folder / "model.safetensors.index.json", shard(folder)
    found = load_huggingface_model(folder).state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    for content, message in (
        ({"weight_map": table | {NORM: "../m/a.safetensors"}}, r"names '\.\./m/a\.safetensors', which is not a file"),
        ({"weight_map": table | {NORM: str(folder / "a.safetensors")}}, "which is not a file of this folder"),
        ({"weight_map": table | {NORM: 3}}, "is damaged: it must have a weight_map"),
        ({"weight_map": {}}, "is damaged: it must have a weight_map"),
        ([], "is damaged: it must have a weight_map"),
        ({"weight_map": {NORM: "a.safetensors"}}, "weights missing: "),
    ):  # fmt: skip
        index.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            load_huggingface_model(folder)
    index.write_text(json.dumps({"weight_map": table}))
    (folder / "b.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"b\.safetensors: is missing"):
        load_huggingface_model(folder)
    index.write_text("{")
    with pytest.raises(DataError, match=r"index\.json: is not valid JSON"):
        load_huggingface_model(folder)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damage_to_a_header_gives_at_most_an_error_of_one_line(tmp_path_factory, data):
    """The weights themselves have no checksum."""
    folder = tmp_path_factory.mktemp("damaged") / "m"
    config = ModelConfig(vocab_size=5, d_model=4, num_layers=1, num_heads=1, max_seq_len=4, d_ff=4, **UNTIED)
    export_huggingface(random_model(config, dtype=torch.float32), None, folder)
    name = data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    whole = (folder / name).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little") if name == "model.safetensors" else len(whole)
    offset = data.draw(st.integers(0, header - 1))
    damaged = (
        whole[:offset] + data.draw(st.binary(max_size=2)) + (b"" if data.draw(st.booleans()) else whole[offset + 1 :])
    )
    (folder / name).write_bytes(damaged)
    try:
        load_huggingface_model(folder)
    except TinyLMError as error:
        assert "\n" not in str(error) and type(error) is DataError
