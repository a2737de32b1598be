"""`tinylm quantize` from the command line."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tinylm.bundle import load, save_bundle
from tinylm.locate import command
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.quantized import describe_layers
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) runs the command in a folder with a run on the built-in stories."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = TransformerLM(ModelConfig(vocab_size=257, d_model=64, num_layers=1, num_heads=2, max_seq_len=64))
    save_bundle(tmp_path / "runs" / "tiny" / "model", model, tokenizer, {"step": 3})
    (tmp_path / "runs" / "tiny" / "config.yaml").write_text(
        "data: {corpus: 'stories:60', split: [0.9, 0.1], seed: 0}\n"
    )
    shutil.copytree(tmp_path / "runs" / "tiny" / "model", tmp_path / "alone")
    (tmp_path / "t.txt").write_bytes("naïve text\n".encode())
    return load("quantize")


TABLE = r"""\s+weights\s+loss\s+bits/byte\s+decoding
original  (0\.\d\d) MB  (\d\.\d{4})\s+\d\.\d{4}\s+[\d,]+ tokens/s
int\d      (0\.\d\d) MB  (\d\.\d{4})\s+\d\.\d{4}\s+[\d,]+ tokens/s
loss [+-]\d\.\d\d%, over [\d,]+ tokens
"""


@pytest.mark.parametrize(
    ("options", "entry"),
    [([], {"kind": "int8"}), (["--bits", 4, "--group-size=64"], {"kind": "int4", "group_size": 64})],
)
def test_quantized_run_is_smaller_with_nearly_the_same_loss(options, entry, run, tmp_path):
    code, out, err = run("--model", "runs/tiny", "--out", "small", *options)
    assert (code, err) == (0, f"tinylm: to generate with it: {command('generate', '--model', 'small')}\n")
    found = re.match(TABLE, out)
    assert found, out
    size, loss, new_size, new_loss = map(float, found.groups())
    weights = 257 * 64 + 4 * 64 * 64 + 3 * 192 * 64 + 3 * 64 + 2 * 32  # embedding, attention, SwiGLU, norms, QK-norm
    assert size == pytest.approx(weights * 4 / 1e6, abs=0.006)
    assert new_size < 0.7 * size and new_loss == pytest.approx(loss, rel=0.01)
    assert (
        out.splitlines()[-1]
        == f"small: kernels of the linear layers when decoding: 7 {entry['kind']} packed, 1 float32"
    )
    model, _ = load(tmp_path / "small")
    (layers,) = describe_layers(model)
    assert {**layers, "names": None} == {**entry, "names": None} and len(layers["names"]) == 7


def test_the_loss_is_measured_on_a_given_text(run):
    code, out, _ = run("--model", "alone", "--out", "small", "--text", "t.txt", "--skip", "head", "*.query")
    assert code == 0 and "over 12 tokens" in out
    assert out.splitlines()[-1].endswith("6 int8 packed, 2 float32")


def test_without_a_text_the_loss_is_left_out(run):
    code, out, _ = run("--model", "alone", "--out", "small")
    assert code == 0 and "loss " not in out.split("\n", 1)[1]
    assert re.search(r"original  0\.\d\d MB\s+-\s+-\s+[\d,]+ tokens/s", out)


def test_other_commands_read_quantized_models(run, load):
    assert run("--model", "alone", "--out", "small", "--text", "t.txt")[0] == 0
    code, out, _ = load("generate")("--model", "small", "--max-new-tokens", 5, "--seed", 1, "--prompt", "a")
    assert code == 0 and out.startswith("a")
    assert load("score")("--model", "small", "--text", "t.txt")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nowhere", "--out", "b"], 66, "nowhere: no such model"),
        (["--model", "alone", "--out", "b", "--text", "no.txt"], 66, "no.txt: no such file"),
        (["--model", "alone", "--out", "b", "--bits", "5"], 2, "--bits: invalid choice: 5 (choose from 8, 4)"),
        (["--model", "alone", "--out", "b", "--bits", "4", "--group-size", "48"], 2, "must be even and divide the 64"),
        (["--model", "alone", "--out", "alone"], 2, "--out alone: is where the model is; give another folder"),
        (["--model", "runs/tiny", "--out", "runs/tiny"], 2, "--out runs/tiny: is where the model is"),
        (["--model", "runs/tiny", "--out", "runs/tiny/model"], 2, "--out runs/tiny/model: is where the model is"),
        (["--model", "runs/tiny/model", "--out", "runs/tiny"], 2, "--out runs/tiny: is where the model is"),
        (["--model", "alone", "--out", "b", "--skip", "heads"], 2, "skip: no linear layer is named heads"),
        (["--model", "alone", "--out", "b", "--bit", "8"], 2, "no such option, did you mean '--bits'"),
        (["--model", "alone"], 2, "--out"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(arguments, code, message, run, tmp_path):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    line = err.splitlines()[-1]
    assert line.startswith("tinylm: error: ") and message in line
    assert not (tmp_path / "b").exists()
    assert load(tmp_path / "alone")[0].config.d_model == 64


def test_quantized_models_are_refused(run):
    assert run("--model", "alone", "--out", "small", "--text", "t.txt")[0] == 0
    code, _, err = run("--model", "small", "--out", "smaller")
    assert code == 2 and "the model is already quantized (7 layers)" in err


def test_only_a_model_folder_is_replaced(run):
    folder = Path("mine")
    folder.mkdir()
    (folder / "diary.txt").write_text("today")
    code, _, err = run("--model", "alone", "--out", "mine", "--text", "t.txt", "--overwrite")
    assert code == 73 and "mine: exists and is not a model folder of tinylm" in err
    assert (folder / "diary.txt").read_text() == "today"
    assert run("--model", "alone", "--out", "again", "--text", "t.txt")[0] == 0
    assert run("--model", "alone", "--out", "again", "--text", "t.txt")[0] == 73
    assert run("--model", "alone", "--out", "again", "--text", "t.txt", "--overwrite")[0] == 0
