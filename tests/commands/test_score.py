"""`tinylm score` from the command line."""

import json
import math
from pathlib import Path

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, WordTokenizer


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


def overflowing(folder: Path) -> None:
    """Rewrites the model so that its weights are finite, but no logit is."""
    tokenizer = ByteTokenizer([END_OF_TEXT])
    shape = dict(vocab_size=257, d_model=8, num_layers=1, num_heads=1, max_seq_len=8, norm="layernorm", bias=True)
    network = TransformerLM(ModelConfig(**shape))
    network.final_norm.bias.data.fill_(1e30)
    network.embedding.weight.data.fill_(1e30)
    save_bundle(folder, network, tokenizer, overwrite=folder.exists())


def test_no_command_prints_a_loss_that_is_not_finite(run, load, tmp_path):
    overflowing(tmp_path / "model")
    for name, words in {
        "score": ["--text", "t.txt"],
        "quantize": ["--text", "t.txt", "--out", "q"],
        "analyze": ["tokens", "--text", "t.txt"],
        "generate": ["--prompt", "a"],
    }.items():
        code, out, err = load(name)("--model", "model", *words)
        assert code == 70 and "not finite" in err and "use another checkpoint" in err and "nan" not in out, name


def test_a_perplexity_beyond_all_numbers_is_said_to_be(run, load, tmp_path):
    """Logits of 0 for a and 9,000 for all other bytes."""
    tokenizer = ByteTokenizer([END_OF_TEXT])
    shape = dict(vocab_size=257, d_model=8, num_layers=1, num_heads=1, max_seq_len=8, norm="layernorm", bias=True)
    network = TransformerLM(ModelConfig(**shape))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.final_norm.bias.data[0] = 1.0
    network.embedding.weight.data[:, 0] = 9000.0
    network.embedding.weight.data[tokenizer.encode("a"), 0] = 0.0
    save_bundle(tmp_path / "model", network, tokenizer, overwrite=True)
    (tmp_path / "a.txt").write_text("aaaa")
    code, out, _ = run("--model", "model", "--text", "a.txt")
    loss = 9000 + math.log(256)
    assert code == 0 and f"loss {loss:.4f} nats per token, perplexity above 10^307, " in out


def test_a_text_of_unknown_words_alone_has_no_bits_per_byte(run, tmp_path):
    tokenizer = WordTokenizer(["cat"])
    network = TransformerLM(ModelConfig(vocab_size=tokenizer.vocab_size, d_model=8, num_layers=1, num_heads=1))
    save_bundle(tmp_path / "words", network, tokenizer)
    (tmp_path / "dogs.txt").write_text("dog dog dog")
    code, out, err = run("--model", "words", "--text", "dogs.txt")
    assert code == 65 and "no token stands for a byte of the text" in err and "bits" not in out


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
        (["t.txt"], 2, "t.txt: not expected here; did you mean --text t.txt?"),
        (["model", "--text", "t.txt"], 2, "model: not expected here; did you mean --model model?"),
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
