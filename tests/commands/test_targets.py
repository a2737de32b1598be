"""Existing files and folders are never overwritten, unless tinylm wrote them and the user asks."""

import os
import shutil
from pathlib import Path

import pytest

from tests.runs.test_compare import make_run
from tinylm.tokenizer import BPETokenizer

TEXT = ["--text", "t.txt"]
WRITERS = {  # command, its words, the target, and whether what it wrote can be recognized
    "export": (["export", "--model", "model", "--to", "hf", "--out", "out"], "out", True),
    "import": (["export", "--model", "hf", "--to", "tinylm", "--out", "out"], "out", True),
    "quantize": (["quantize", "--model", "model", *TEXT, "--out", "out"], "out", True),
    "tokenizer": (["tokenizer", "train", "t.txt", "--kind", "char", "--out", "out"], "out", True),
    "tokenizer.json": (["tokenizer", "export", "bpe.json", "--to", "huggingface", "--out", "out"], "out", True),
    "ranks": (["tokenizer", "export", "bpe.json", "--to", "tiktoken", "--out", "out"], "out", True),
    "tokenizer copy": (["tokenizer", "export", "bpe.json", "--to", "tinylm", "--out", "out"], "out", True),
    "vocab": (["tokenizer", "export", "bpe.json", "--to", "gpt2", "--out", "out"], "out/vocab.json", True),
    "merges": (["tokenizer", "export", "bpe.json", "--to", "gpt2", "--out", "out"], "out/merges.txt", True),
    "pairs": (["prepare", "questions", "--train=2", "--val=1", "--test=1", "--out", "out"], "out/val.jsonl", True),
    "completions": (["generate", "--model", "model", "--prompt", "a", "--out", "out.jsonl"], "out.jsonl", True),
    "text": (["generate", "--model", "model", "--prompt", "a", "--out", "out.txt"], "out.txt", False),
    "plot": (["plot", "runs", "--out", "out.png"], "out.png", True),
    "svg": (["plot", "runs", "--out", "out.svg"], "out.svg", True),
    "table": (["analyze", "--model", "model", *TEXT, "--rows", "2", "--out", "out"], "out/profile.txt", True),
    "heads": (["analyze", "attention", "--model", "model", *TEXT, "--out", "out"], "out/heads.png", True),
    "drawing": (["analyze", "network", "--model", "model", "--out", "out.svg"], "out.svg", True),
    "config": (["configs", "small", "--out", "out.yaml"], "out.yaml", False),
}


@pytest.fixture
def run(load, model, tmp_path, monkeypatch):
    """run(words) runs a command in a folder with a model, a run, a text and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    make_run(tmp_path / "runs" / "one")
    Path("t.txt").write_text("abcdef gh\nabcdefgh abc\n")
    BPETokenizer([(0, 1)]).save("bpe.json")
    if not Path("hf").exists():
        assert load("export")("--model", "model", "--to", "hf", "--out", "hf")[0] == 0
    return lambda words: load(words[0])(*words[1:])


@pytest.mark.parametrize(
    ("words", "target", "recognized"),
    # "table" draws 28 pictures
    [pytest.param(*each, id=name, marks=[pytest.mark.slow] * (name == "table")) for name, each in WRITERS.items()],
)
def test_a_writer_replaces_only_its_own_output_and_only_when_asked(words, target, recognized, run):
    path = Path(target)
    path.parent.mkdir(exist_ok=True)
    path.write_text("my thesis")
    overwrite = [] if words[0] == "configs" else ["--overwrite"]
    for more in ([], overwrite):
        code, out, err = run([*words, *more])
        assert (code, out) == (73, ""), err
        assert f"{path}: exists and is not" in err and err.count("\n") == 1
    assert path.read_text() == "my thesis"
    path.unlink()

    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    code, _, err = run([*words, *overwrite])
    assert code == 73 and f"{path}: exists and is not" in err
    assert [each.name for each in path.iterdir()] == ["thesis.tex"]
    shutil.rmtree(path)

    assert run(words)[0] == 0
    code, out, err = run(words)
    assert (code, out) == (73, "") and ": exists" in err and err.count("\n") == 1
    assert run([*words, *overwrite])[0] == (0 if recognized else 73)


def test_a_picture_of_the_default_name_is_replaced_if_tinylm_drew_it(run):
    assert run(["plot", "runs"])[0] == 0
    assert run(["plot", "runs"])[0] == 0
    Path("curves.png").write_bytes(b"\x89PNG a photograph of my grandmother")
    code, _, err = run(["plot", "runs"])
    assert code == 73 and "curves.png: exists and is not a picture of tinylm; choose another path, or remove it" in err
    assert Path("curves.png").read_bytes().endswith(b"grandmother")


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_or_a_dangling_link_is_no_target(run):
    Path("link").symlink_to("nowhere")
    os.mkfifo("pipe")  # stands for a device: a test that fails must not replace /dev/null
    for target in ("pipe", "link"):
        code, _, err = run(["tokenizer", "train", "t.txt", "--kind", "char", "--out", target])
        assert code == 73 and f"{target}: exists and is not a tokenizer of tinylm" in err
    assert Path("pipe").is_fifo() and Path("link").is_symlink()
