"""`tinylm prepare` from the command line."""

import json
from pathlib import Path

import pytest

from tinylm.data import open_corpus, read_pairs
from tinylm.data.corpora.tinystories import sources
from tinylm.data.grammar.questions import write_parts
from tinylm.locate import command


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return load("prepare")


@pytest.mark.parametrize("kind", ["questions", "summaries"])
def test_three_files_hold_the_pairs_of_a_seed(kind, run):
    code, out, err = run(kind, "--out", "deep/q", "--train", 30, "--val=4", "--test", 5, "--seed", 3)
    assert (code, err) == (0, "")
    *written, first, last = out.splitlines()
    assert written == [
        f"{Path('deep/q') / name}.jsonl: {count} pairs" for name, count in (("train", 30), ("val", 4), ("test", 5))
    ]
    assert first == f"to train the model to start from: {command('fit', '-c', 'small')}"
    files = ["--data.pairs", Path("deep/q/train.jsonl"), "--data.pairs_val", Path("deep/q/val.jsonl")]
    assert last == f"to finetune on them: {command('fit', '-c', 'finetune', *files)}"
    expected = write_parts(kind, [30, 4, 5], seed=3)
    for name, part in zip(("train", "val", "test"), expected, strict=True):
        lines = Path(f"deep/q/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [tuple(json.loads(line).values()) for line in lines] == part
        assert [tuple(turn.content for turn in turns) for turns in read_pairs(f"deep/q/{name}.jsonl")] == part


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "kind"),
        (["question"], 2, "question: no such subcommand, did you mean 'questions'?"),
        (["xyz"], 2, "xyz: no such subcommand; there are inspect, questions, summaries, tinystories, tokens, shards"),
        (["tinystories", "--sample", "0"], 2, "--sample must be at least 1, got 0"),
        (["tinystories", "--stories", "9"], 2, "--stories: no such option"),
        (["questions"], 2, "--out"),
        (["questions", "--out", "q", "--train", "0"], 2, "--train must be at least 1, got 0"),
        (["questions", "--out", "q", "--trian", "9"], 2, "no such option, did you mean '--train'"),
        (["questions", "--out", "q", "--seed", "-1", "--val", "-1"], 2, "--val must be at least 1, got -1"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
    assert not Path("q").exists()


def test_tinystories_names_the_next_command_and_offline_where_to_put_the_files(run, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    dead = "http://127.0.0.1:9/m"  # the discard port, where nothing listens
    code, out, err = run("tinystories", "--sample", 3, "--val", 1, "--url", dead, "--cache-dir", "cache")
    assert (code, out) == (66, "")
    assert "cannot download http://127.0.0.1:9/m/TinyStoriesV2-GPT4-train.txt" in err and "by hand" in err
    assert not Path("tinystories-3").exists() or not list(Path("tinystories-3").iterdir())

    for source in sources(dead):
        source.path(Path("cache")).parent.mkdir(parents=True)
        source.path(Path("cache")).write_text("a\n<|endoftext|>\nb\n<|endoftext|>\nc\n<|endoftext|>\n")
    code, out, err = run("tinystories", "--sample", 3, "--val", 1, "--url", dead, "--cache-dir", "cache")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{Path('tinystories-3/train.txt')}: 3 stories, 47 bytes",  # 2 + 3 + 3 letters and lines, 3 separators of 13
        f"{Path('tinystories-3/val.txt')}: 1 stories, 15 bytes",
        f"to train on them: {command('fit', '-c', 'small', '--data.corpus', 'tinystories-3')}",
        f"or with NumPy:    {command('train-numpy', '-c', 'tiny', '--data.corpus', 'tinystories-3')}",
    ]
    corpus = open_corpus("tinystories-3", split=(0.9, 0.1), cache_dir=Path("cache"))
    assert ["".join(text) for text in corpus.texts()] == ["a\n", "\nb\n", "\nc\n", "a\n"]
