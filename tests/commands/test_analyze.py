"""`tinylm analyze` from the command line."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tinylm.adapt import quantize
from tinylm.bundle import load, save_bundle
from tinylm.commands.analyze_report import text_rows
from tinylm.data.grammar.stories import log_prob, story_grammar
from tinylm.data.held_out import held_out_stories
from tinylm.errors import DataError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

PICTURES = {
    "attention": ["attention.png", "attention.svg", "heads.png", "heads.svg"],
    "activations": ["activations.png", "activations.svg"],
    "gradients": ["gradients.png", "gradients.svg"],
    "lens": ["lens.png", "lens.svg"],
}
CHARTS = {
    "embeddings": ["embeddings.png", "embeddings.svg"],
    "weights": ["weights.png", "weights.svg"],
    "positions": ["positions.png", "positions.svg"],
    "choices": ["choices.png", "choices.svg"],
}


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) runs the command in a folder with a run on the built-in stories, whose weights are zero."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinylm.runs.plots.DOTS_PER_INCH", 20)  # saves time
    config = ModelConfig(vocab_size=257, d_model=8, num_layers=1, num_heads=2, max_seq_len=16, qk_norm=False)
    model = TransformerLM(config)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    save_bundle(tmp_path / "runs/tiny/model", model, ByteTokenizer([END_OF_TEXT]), {"step": 3})
    (tmp_path / "runs/tiny/config.yaml").write_text("data: {corpus: 'stories:60', split: [0.9, 0.1], seed: 0}\n")
    shutil.copytree(tmp_path / "runs/tiny/model", tmp_path / "alone")
    (tmp_path / "t.txt").write_bytes("naïve text, longer than the context: two sequences\n".encode())
    return load("analyze")


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr("tinylm.commands.analyze_report.save_figure", lambda figure, picture: None)  # saves time


def test_profile_by_hand(run):
    """d_model 8, d_ff 64 in three matrices, 257 tokens: 256 + 1536 weights in matrices, 24 in norms."""
    code, out, _ = run("profile", "--model", "alone")
    assert code == 0
    lines = [line.split("  ") for line in out.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert rows["embedding"] == ["2,056", "53.1%", "0", "0", "0.0%", "-", "-"]
    assert rows["attention: projections"][:4] == ["256", "6.6%", "512", "1,024"]
    assert rows["attention: scores, values"][2:4] == [f"{4 * 8 * 16:,}", f"{8 * 8 * 16:,}"]
    assert rows["feed-forward"][2:4] == ["3,072", "6,144"]
    assert rows["head"][2:4] == ["4,112", "8,224"]
    assert rows["all"][:2] == ["3,872", "100.0%"]
    assert rows["all"][2:4] == [f"{512 + 512 + 3072 + 4112:,}", f"{2 * 8208:,}"]
    assert "KV cache 64 bytes per token" in out


@pytest.mark.parametrize("command", PICTURES)
def test_each_subcommand_writes_the_files_it_prints(command, run, tmp_path):
    code, out, err = run(command, "--model", "alone", "--text", "t.txt", "--out", "new/folder")
    assert (code, err) == (0, "")
    assert out.splitlines()[-len(PICTURES[command]) :] == [f"new/folder/{name}" for name in PICTURES[command]]
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == PICTURES[command]


def test_formats_and_the_theme_are_options(run, tmp_path):
    options = ("gradients", "--model", "alone", "--text", "t.txt", "--out", "o", "--format", "svg", "pdf")
    files = []
    for theme in ("light", "dark"):
        code, out, _ = run(*options, "--theme", theme, "--overwrite")
        assert code == 0 and out.splitlines()[-2:] == ["o/gradients.svg", "o/gradients.pdf"]
        files.append((tmp_path / "o/gradients.svg").read_text())
    assert "#17191d" not in files[0] and "#17191d" in files[1]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["gradients.pdf", "gradients.svg"]


def test_statistics_of_a_network_with_zero_weights(run, without_pictures):
    """Attention and predictions are uniform: the loss is log 257 at every layer, and every unit is dead."""
    options = ["--model", "alone", "--text", "t.txt", "--out", "o"]
    even = sum(math.log(count) for count in range(1, 17)) / 16
    previous = sum(1 / count for count in range(2, 17)) / 15
    induction = sum(1 / count for count in range(9, 17)) / 8
    for head in ("0.0", "0.1"):
        line = next(line for line in run("attention", *options)[1].splitlines() if line.startswith(head))
        assert line.split() == [head, f"{even:.3f}", f"{previous:.3f}", f"{induction:.3f}"]
    assert run("lens", *options)[1].splitlines()[:3] == [
        "after        loss  agreement  divergence",
        f"embedding  {math.log(257):.4f}     100.0%      0.0000",
        f"layer 0    {math.log(257):.4f}     100.0%      0.0000",
    ]
    units = run("activations", *options)[1].splitlines()[3]
    assert units == "0      units        0.0000  0.0000      0.0    0.000%  100.0%"
    lines = run("tokens", *options[:-2])[1].splitlines()
    assert lines[0] == "in brackets: the loss in nats of each token"
    assert lines[1].startswith("n[5.5]a[5.5]\\xc3[5.5]\\xaf[5.5]v[5.5]e[5.5] [5.5]t[5.5]")
    assert lines[2] == f"52 tokens, loss {math.log(257):.4f} nats per token"


@pytest.mark.slow
def test_without_a_subcommand_all_reports_go_to_a_folder(run, tmp_path):
    code, out, err = run("--model", "runs/tiny", "--rows", 4)  # on validation stories
    assert code == 0
    assert re.fullmatch(r"tinylm: text: \d+ validation stories of the run\n", err)
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names == ["profile", "profile", "attention", "activations", "gradients", "lens", "tokens", "embeddings",
                     "weights", "positions", "choices", "analysis"]  # fmt: skip
    found = {path.name for path in (tmp_path / "analysis").iterdir()}
    assert found == {f"{name}.txt" for name in ("profile", *PICTURES, *CHARTS, "tokens")} | {
        n for names in (PICTURES | CHARTS).values() for n in names
    }
    assert "Once upon a time" in (tmp_path / "analysis/tokens.txt").read_text().replace("[5.5]", "")


def test_losses_and_choices_of_a_network_with_zero_weights(run, without_pictures):
    """Each byte costs log 257, and a story -log of its probability at best."""
    (story,) = held_out_stories(Path("runs/tiny"), 1)
    lines = run("choices", "--model", "runs/tiny")[1].splitlines()
    count = len(story.encode())
    nats, best = count * math.log(257), -log_prob(story)
    assert lines[-3].startswith(f"{count} tokens: {nats:.2f} nats, {best:.2f} at best, {nats / best - 1:+.1%}; largest")
    lines = run("positions", "--model", "runs/tiny", "--rows", 4)[1].splitlines()
    truth = -np.diff(story_grammar().prefix_log_probs(story[:64])).reshape(4, 16).mean(axis=0)  # four rows of 16 bytes
    assert [line.split("  ")[0] for line in lines[1:-3]] == ["0", "1", "2 to 3", "4 to 7", "8 to 15"]
    for line, (begin, end) in zip(lines[1:-3], [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16)], strict=True):
        assert line.split()[-2] == f"{math.log(257):.4f}"
        assert float(line.split()[-1]) == pytest.approx(truth[begin:end].mean(), abs=1e-4)
    assert "best possible" not in run("positions", "--model", "alone", "--text", "t.txt")[1]
    code, _, err = run("choices", "--model", "alone", "--text", "t.txt")
    assert code == 2 and "the true probabilities of this text are unknown; give a story of the built-in corpus" in err


def test_reports_that_a_model_cannot_give_are_left_out(run, without_pictures, tmp_path):
    model, tokenizer = load(tmp_path / "alone")
    save_bundle(tmp_path / "int8", quantize(model, bits=8), tokenizer)
    code, out, _ = run("--model", "int8", "--text", "t.txt", "--out", "o")
    assert code == 0
    assert "gradients: left out: weights of 8 and 4 bits have no gradients; analyze the unquantized" in out
    assert (tmp_path / "o/tokens.txt").is_file() and not (tmp_path / "o/gradients.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["atention", "--model", "alone"], 2, "atention: no such subcommand, did you mean 'attention'?"),
        (["x", "--model", "alone"], 2, "it is one of profile, attention, activations, gradients, lens, tokens, embed"),
        (["lens", "--model", "alone"], 2, "--text: missing; give a UTF-8 text file (profile and weights need none)"),
        (["--model", "alone"], 2, "--text: missing; give a UTF-8 text file"),
        (
            ["choices", "--model", "alone"],
            2,
            "choices: alone was trained on a corpus that is not known here, whose true",
        ),
        (["choices", "--model", "runs/play"], 2, "choices: runs/play was trained on shakespeare, whose true probabil"),
        (["lens", "--model", "alone", "--text", "no.txt"], 66, "no.txt: no such file"),
        (["lens", "--model", "nowhere", "--text", "t.txt"], 66, "nowhere: no such model"),
        (["lens", "--model", "alone", "--text", "e.txt"], 65, "the text has no token to predict; give a longer one"),
        (["tokens", "--model", "alone", "--theme", "dark"], 2, "--theme: does not work with tokens; leave it out"),
        (["lens", "--model", "alone", "--theme", "drak"], 2, "--theme: invalid choice: 'drak'"),
        (["profile", "--model", "alone", "--length", "17"], 2, "--length must be at most the context, 16, got 17"),
        (["lens", "--model", "alone", "--rows", "0"], 2, "--rows must be at least 1, got 0"),
        (["gradients", "--model", "alone", "--text", "t.txt", "--rows", "1"], 2, "need at least 2 sequences, got 1"),
        (["gradients", "--model", "int8", "--text", "t.txt"], 2, "weights of 8 and 4 bits have no gradients"),
        (["profile", "--model", "alone", "--row", "1"], 2, "no such option, did you mean '--rows'"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run, tmp_path):
    (tmp_path / "e.txt").write_text("")
    if "runs/play" in arguments:
        shutil.copytree(tmp_path / "alone", tmp_path / "runs/play/model")
        (tmp_path / "runs/play/config.yaml").write_text("data: {corpus: shakespeare, split: [0.9, 0.1], seed: 0}\n")
    if "int8" in arguments:
        model, tokenizer = load(tmp_path / "alone")
        save_bundle(tmp_path / "int8", quantize(model, bits=8), tokenizer)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1


# --- sequences


@pytest.mark.parametrize(
    ("texts", "length", "most", "expected"),
    [
        (["abcabcabc"], 3, 5, ["abca", "abca"]),  # the last two tokens fill no sequence
        (["abcabcabc"], 3, 1, ["abca"]),
        (
            ["abcab", "cba"],
            3,
            9,
            ["abca", "abcb"],
        ),  # the second row continues into the next text, which is too short itself
        (["abcab", "cbac"], 3, 9, ["abca", "abcb", "cbac"]),
        (["ab"], 3, 5, ["ab"]),
    ],
)
def test_each_text_begins_a_row(texts, length, most, expected):
    tokenizer = CharTokenizer("abc")
    rows = text_rows(tokenizer, texts, length, most)
    assert [tokenizer.decode(row.tolist()) for row in rows] == expected


def test_every_text_has_a_separator_before_it():
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    rows = [[3, 0, 1], [1, 3, 2], [3, 2, 0], [0, 3, 1], [3, 1, 1]]  # a row at the end of a text continues into the next
    assert text_rows(tokenizer, ["ab", "ca", "bb"], 2, 9).tolist() == rows


def test_texts_without_a_token_to_predict_are_refused():
    for text in ("", "a"):
        with pytest.raises(DataError, match="the text has no token to predict; give a longer one"):
            text_rows(CharTokenizer("ab"), [text], 4, 2)
