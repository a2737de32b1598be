"""The commands of `tinylm tokenizer`."""

import io
import json
import sys
from pathlib import Path

import pytest
import tiktoken.load
import tokenizers

from tinylm.data.grammar.stories import stories
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, WordTokenizer, load_tokenizer


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """Returns run(*arguments), which runs the command in a folder with two texts: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("".join(stories(seed=1, count=60)))
    (tmp_path / "b.txt").write_text("a naïve cat\n")
    return load("tokenizer")


def test_bpe_is_trained_on_files_as_documents(run):
    code, out, err = run("a.txt", "b.txt", "--vocab-size", 400, "--out", "deep/tok.json")
    assert (code, err) == (0, "")
    size = Path("a.txt").stat().st_size + Path("b.txt").stat().st_size
    assert out.startswith(f"deep/tok.json: bpe, 400 tokens, from {size:,} bytes in ")
    texts = [Path(name).read_text() for name in ("a.txt", "b.txt")]
    expected = BPETokenizer.train_from_texts(texts, vocab_size=400, special_tokens=[END_OF_TEXT])
    assert load_tokenizer("deep/tok.json") == expected
    count = len(expected.encode(texts[0]))
    size = len(texts[0].encode())
    assert f"{count:,} tokens, {size:,} bytes" in out and f"{size / count:.2f} bytes per token" in out


def test_fewer_tokens_than_asked_for_are_said_in_one_line(run):
    code, out, err = run("b.txt", "--vocab-size", 9000, "--out", "t.json")
    found = load_tokenizer("t.json").vocab_size
    assert code == 0 and f" {found:,} tokens" in out
    assert err == f"tinylm: --vocab-size 9000: the text has no more than {found:,} tokens\n"


def test_options_reach_their_kind(run):
    assert run("a.txt", "--kind", "word", "--min-frequency", 5, "--vocab-size", 40, "--out", "w.json")[0] == 0
    expected = WordTokenizer.train(["a.txt"], min_frequency=5, vocab_size=40)
    assert load_tokenizer("w.json") == expected
    assert run("a.txt", "--kind", "char", "--special-tokens", "--out", "c.json")[0] == 0
    assert load_tokenizer("c.json") == CharTokenizer.train(["a.txt"])
    options = ("--pattern", "gpt4", "--special-tokens", "<a>", "<b>", "--processes", 1, "--vocab-size", 300)
    assert run("a.txt", *options, "--out", "b.json")[0] == 0
    expected = BPETokenizer.train(["a.txt"], pattern="gpt4", special_tokens=["<a>", "<b>"], vocab_size=300)
    assert load_tokenizer("b.json") == expected


ERRORS = {
    "no such file": (["no.txt", "--out", "t"], 66, "no.txt: no such file"),
    "an empty file": (["empty.txt", "--kind", "byte", "--out", "t"], 65, "empty.txt: is empty; give a file with text"),
    "no corpus": (["--out", "t"], 2, "the following arguments are required: corpus"),
    "an option of another kind": (["a.txt", "--kind", "char", "--vocab-size", "9", "--out", "t"], 2,
                                  "--vocab-size: does not work with --kind char; leave it out"),
    "too small": (["a.txt", "--vocab-size", "9", "--out", "t"], 2, "vocab_size must be at least 257"),
    "no memory": (["a.txt", "--memory-limit", "0", "--out", "t"], 2, "memory_limit must be at least 1 megabyte, got 0"),
    "no folder": (["a.txt", "--vocab-size", "300", "--out", "b.txt/t"], 73, "b.txt/t: cannot be created"),
    "nothing to inspect": (["inspect", "t.json", "x"], 66, "t.json: no such tokenizer file"),
    "a misspelt command": (["inspekt", "t.json", "x"], 2, "inspekt: no such subcommand, did you mean 'inspect'?"),
    "no text": (["inspect", "t.json", ""], 65, "text: is empty"),
    "a format that cannot hold it": (["export", "w.json", "--to", "gpt2", "--out", "g"], 2, "got word"),
    "an unknown format": (["export", "w.json", "--to", "gguf", "--out", "g"], 2, "invalid choice: 'gguf'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(arguments, code, message, run):
    WordTokenizer(["a"]).save("w.json")
    Path("empty.txt").touch()
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1


def test_a_file_that_is_not_utf8_is_named_with_the_offset(run):
    Path("bad.txt").write_bytes(b"good \xff")
    code, _, err = run("bad.txt", "--out", "t.json")
    assert code == 65 and "bad.txt: is not UTF-8 at byte 5" in err
    assert not Path("t.json").exists()


def test_inspect_shows_pieces_ids_and_figures_by_hand(run, monkeypatch):
    h, e = 71, 68  # GPT-2's byte ids: ranks among the printable bytes
    BPETokenizer([(h, e), (256, 75)]).save("t.json")  # he, hel
    code, out, _ = run("inspect", "t.json", "hello é\n")
    assert code == 0
    assert out.splitlines() == [
        "hel|l|o| |\\xc3|\\xa9|\\n",
        "257 75 78 220 127 102 198",
        "7 tokens, 9 bytes, 8 characters: 1.29 bytes per token; the ids take 14 bytes, 156% of the text",
    ]
    _, out, _ = run("inspect", "t.json", "hehe", "--color", "always")
    assert out.splitlines()[0] == "\x1b[30;48;5;194mhe\x1b[0m\x1b[30;48;5;225mhe\x1b[0m"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("hé".encode())))
    assert run("inspect", "t.json", "-")[1].splitlines()[0] == "h|\\xc3|\\xa9"


def test_exports_give_the_same_ids_in_other_libraries(run):
    run("a.txt", "--vocab-size", 400, "--out", "t.json")
    text, ours = Path("a.txt").read_text(), load_tokenizer("t.json")
    for name, out in {"huggingface": "h.json", "gpt2": "g", "tiktoken": "t.tiktoken", "tinylm": "u.json"}.items():
        code, printed, _ = run("export", "t.json", "--to", name, "--out", out)
        assert (code, printed) == (0, f"{out}: bpe, 400 tokens, for {name}\n")
    assert tokenizers.Tokenizer.from_file("h.json").encode(text).ids == ours.encode(text)
    assert load_tokenizer("u.json") == load_tokenizer("h.json") == load_tokenizer("g") == ours
    assert json.loads(Path("g/vocab.json").read_text())["<|endoftext|>"] == 399
    ranks = tiktoken.load.load_tiktoken_bpe("t.tiktoken")
    assert ranks == {piece: token for token, piece in enumerate(ours.token_bytes[:399])}
