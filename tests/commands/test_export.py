"""`tinylm export` from the command line."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import tinylm
from tinylm.bundle import load_bundle, save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import ByteTokenizer


@pytest.fixture
def run(load, model, tmp_path, monkeypatch):
    """run(*arguments) runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    transformers.logging.disable_progress_bar()
    return load("export")


def test_export_and_import_give_the_same_model(run, model):
    code, out, err = run("--model", model, "--to", "hf", "--out", "hf")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    bundle = load_bundle(model)
    count = f"{bundle.model.num_parameters():,}"
    assert first == f"hf: Qwen3ForCausalLM, {count} parameters; how to use it: {Path('hf/README.md')}"
    assert second == 'to load it: AutoModelForCausalLM.from_pretrained("hf"), AutoTokenizer.from_pretrained("hf")'
    ids = torch.tensor([bundle.tokenizer.encode("aé\n😀")])
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained("hf")(input_ids=ids).logits
    torch.testing.assert_close(bundle.model(ids), expected, rtol=0.0, atol=1e-5)

    code, out, err = run("--model", "hf", "--to=tinylm", "--out", "deep/back")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{Path('deep/back')}: a model folder, {count} parameters, 12 tokens"
    again, tokenizer = tinylm.load("deep/back")
    assert tokenizer == bundle.tokenizer
    assert torch.equal(again(ids), bundle.model(ids))
    assert load_bundle("deep/back").info == {"from": "hf"}


def test_the_output_of_quantize_can_be_exported(run, load, model):
    """Its weights come back plain: the matrices that the codes stand for."""
    assert load("quantize")("--model", model, "--out", "rounded", "--bits", "8")[0] == 0
    code, _, err = run("--model", "rounded", "--to", "hf", "--out", "hf")
    assert code == 0 and "quantized layers are written as float32, with their dequantized values" in err
    assert run("--model", "hf", "--to=tinylm", "--out", "back")[0] == 0
    rounded, back = tinylm.load("rounded")[0], tinylm.load("back")[0]
    assert torch.equal(back.blocks[0].attention.query.weight, rounded.blocks[0].attention.query.weight)


def test_nothing_is_overwritten(run, model):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    code, out, err = run("--model", model, "--to", "hf", "--out", "mine")
    assert (code, out) == (
        73,
        "",
    ) and "mine: exists and is not a Hugging Face folder of tinylm" in err
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]
    Path("empty").mkdir()
    assert run("--model", model, "--to", "hf", "--out", "empty")[0] == 0
    code, out, err = run("--model", model, "--to", "hf", "--out", "empty")
    assert (code, out) == (73, "") and "empty: exists; choose another path, or replace it with --overwrite" in err
    assert run("--model", model, "--to", "hf", "--out", "empty", "--overwrite")[0] == 0
    Path("empty/README.md").write_text("A model of somebody else")
    assert run("--model", model, "--to", "hf", "--out", "empty", "--overwrite")[0] == 73


ERRORS = {
    "no model": (["--model", "nowhere", "--to", "hf", "--out", "o"], 66, "nowhere: no such model"),
    "no Hugging Face folder": (["--model", "nowhere", "--to", "tinylm", "--out", "o"], 66, "nowhere: no such folder"),
    "a tinylm folder": (["--model", "model", "--to", "tinylm", "--out", "o"], 66, "model: has no config.json"),
    "no counterpart": (["--model", "model", "--to", "hf", "--out", "o"], 2, "positional_encoding=sinusoidal: no"),
    "an unsupported model": (
        ["--model", "gemma", "--to", "tinylm", "--out", "o"], 65, "config.json: model_type is 'gemma': its norms"
    ),
    "another format": (["--model", "model", "--to", "onnx", "--out", "o"], 2, "invalid choice: 'onnx'"),
    "an unknown option": (["--model", "model", "--to", "hf", "--ou", "o"], 2, "--out"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(arguments, code, message, run, capfd):
    shape = dict(vocab_size=256, d_model=8, num_layers=1, num_heads=1, max_seq_len=8)
    save_bundle("model", TransformerLM(ModelConfig(**shape, positional_encoding="sinusoidal")), ByteTokenizer())
    Path("gemma").mkdir()
    Path("gemma/config.json").write_text(json.dumps({"model_type": "gemma"}))
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
    assert not Path("o").exists()
