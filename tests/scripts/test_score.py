"""scripts/score.py as a user meets it."""

import math

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) calls the script's main in a folder with a model that finds all bytes equally likely."""
    monkeypatch.chdir(tmp_path)
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = TransformerLM(ModelConfig(vocab_size=257, d_model=8, num_layers=1, num_heads=1, max_seq_len=8))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    save_bundle(tmp_path / "model", model, tokenizer)
    (tmp_path / "t.txt").write_bytes("naïve text, longer than the context\n".encode())
    return load("score")


@pytest.mark.parametrize("options", [[], ["--stride", 3, "--batch_size", 2, "--device=cpu"]])
def test_a_text_is_scored_by_hand(options, run):
    code, out, err = run("--model", "model", "--text", "t.txt", *options)
    first, second = out.splitlines()
    assert (code, err) == (0, "")
    assert first.startswith("t.txt: 37 tokens, 37 bytes, ")
    bits = math.log2(257)
    assert second == f"loss {math.log(257):.4f} nats per token, perplexity 257.00, {bits:.4f} bits per byte"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "model", "--text", "no.txt"], 66, "no.txt: no such file"),
        (["--model", "nowhere", "--text", "t.txt"], 66, "nowhere: no such model"),
        (["--model", "model", "--text", "t.txt", "--stride", "9"], 2, "stride must be from 1 to the context, 8, got 9"),
        (["--model", "model", "--text", "t.txt", "--strid", "9"], 2, "no such option, did you mean '--stride'"),
        (["--model", "model"], 2, "--text"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
