"""`tinylm score` from the command line."""

import json
import math

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) runs the command in a folder with a model that predicts all bytes with equal probability."""
    monkeypatch.chdir(tmp_path)
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = TransformerLM(ModelConfig(vocab_size=257, d_model=8, num_layers=1, num_heads=1, max_seq_len=8))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    save_bundle(tmp_path / "model", model, tokenizer)
    (tmp_path / "t.txt").write_bytes("naïve text, longer than the context\n".encode())
    (tmp_path / "p.csv").write_text("prompt,response\nlonger,than\n")
    return load("score")


@pytest.fixture
def pairs(run, tmp_path):
    """A file of pairs, and a model that always generates "bbb...": one of three answers is right."""
    tokenizer = CharTokenizer("ab", [END_OF_TEXT])
    shape = dict(vocab_size=3, d_model=8, num_layers=1, num_heads=1, max_seq_len=16, norm="layernorm", bias=True)
    model = TransformerLM(ModelConfig(**shape))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.final_norm.bias.data[0] = 1.0
    model.embedding.weight.data[:, 0] = torch.tensor([0.0, 2.0, 1.0])  # logits of a, b and the end of text
    save_bundle(tmp_path / "parrot", model, tokenizer)
    records = [dict(prompt="a", response="bb"), dict(prompt="ba", response="b"), dict(prompt="", response="ab")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))


@pytest.mark.parametrize("options", [[], ["--stride", 3, "--batch_size", 2, "--device=cpu"]])
def test_a_text_is_scored_by_hand(options, run):
    code, out, err = run("--model", "model", "--text", "t.txt", *options)
    first, second = out.splitlines()
    assert (code, err) == (0, "")
    assert first.startswith("t.txt: 37 tokens, 37 bytes, ")
    bits = math.log2(257)
    assert second == f"loss {math.log(257):.4f} nats per token, perplexity 257.00, {bits:.4f} bits per byte"


def test_answers_to_pairs_are_scored_by_hand(run, pairs):
    """Of 8 tokens to predict 1 is a, 4 are b, 3 are ends: -log p is log(1 + e + e²) less 0, 2 and 1."""
    arguments = ["--model", "parrot", "--pairs", "p.jsonl", "--max-new-tokens", 2]
    code, out, err = run(*arguments, "--show", 1)
    assert (code, err) == (0, "")
    loss = math.log(1 + math.e + math.e**2) - (4 * 2 + 3 * 1) / 8
    assert out.splitlines() == [
        "p.jsonl: 3 pairs, 8 tokens in the responses",
        f"loss {loss:.4f} nats per token, exact match 33.3%",
        "",
        "ba",
        "  answered: bb",
        "  expected: b",
    ]
    assert run(*arguments)[1].count("answered") == 2


def test_fields_name_the_prompt_and_the_response(run, pairs, tmp_path):
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    (tmp_path / "q.csv").write_text("".join(f"{a};{b}\n" for a, b in [("Q", "A"), *(r.values() for r in records)]))
    plain = run("--model", "parrot", "--pairs", "p.jsonl", "--max-new-tokens", 2)
    named = run("--model", "parrot", "--pairs", "q.csv", "--fields", "Q", "A", "--max-new-tokens", 2)
    assert plain[0] == 0 and named[1] == plain[1].replace("p.jsonl", "q.csv")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "model", "--text", "no.txt"], 66, "no.txt: no such file"),
        (["--model", "nowhere", "--text", "t.txt"], 66, "nowhere: no such model"),
        (["--model", "model", "--text", "t.txt", "--stride", "9"], 2, "stride must be from 1 to the context, 8, got 9"),
        (["--model", "model", "--text", "t.txt", "--strid", "9"], 2, "no such option, did you mean '--stride'"),
        (["--model", "model"], 2, "give either --text or --pairs"),
        (["--model", "model", "--text", "t.txt", "--pairs", "p.jsonl"], 2, "give either --text or --pairs"),
        (["--model", "model", "--pairs", "no.jsonl"], 66, "no.jsonl: no such file of pairs"),
        (["--model", "model", "--pairs", "t.txt"], 65, "t.txt: is not a known format; give a file whose name ends in"),
        (["--model", "model", "--pairs", "p.csv", "--template", "chta"], 2, "did you mean 'chat'"),
        (
            ["--model", "model", "--pairs", "p.csv", "--template", "chat"],
            2,
            "needs <|system|>, <|user|>, <|assistant|>",
        ),
        (["--model", "model", "--pairs", "p.csv"], 65, "the first is record 1 with 11; shorten them"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
