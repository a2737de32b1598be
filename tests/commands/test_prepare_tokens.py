"""`tinylm prepare tokens`: shards by one process or several, files of ids, verification, and refused options."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinylm import workers
from tinylm.data import open_corpus, open_shards, open_tokens, shard_builder
from tinylm.data.corpora import documents
from tinylm.locate import command
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, load_tokenizer
from tinylm.tokenizer.fast import blocks

ROOT = Path(__file__).resolve().parents[2]
LINES = [f"line {number} says é and 😀 {number * number}\n" for number in range(200)]


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) runs the command in a folder with some texts and a tokenizer, and with small shards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "BLOCK", 200)
    monkeypatch.setattr(shard_builder, "BLOCKS", 2)
    monkeypatch.setattr(workers, "num_cores", lambda: 1)
    for number in range(4):
        Path(f"{number}.txt").write_text("".join(LINES[number::4]), encoding="utf-8")
    BPETokenizer.train_from_texts(LINES, vocab_size=300, special_tokens=[END_OF_TEXT]).save("tok.json")
    return lambda *arguments: load("prepare")("tokens", *arguments)


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def cached():
    """The ids in the cache: those that training reads."""
    corpus = open_corpus("?.txt", split=(0.9, 0.1), cache_dir=Path("cache"))
    return {
        part: np.asarray(ids) for part, ids in open_tokens(corpus, load_tokenizer("tok.json"), Path("cache")).items()
    }


def test_shards_have_the_tokens_that_training_on_the_text_reads(run):
    code, out, _ = run("?.txt", "--tokenizer", "tok.json", "--out", "s")
    assert code == 0
    expected = cached()
    count = len(list(Path("s").glob("*.bin")))
    sizes = f"{len(expected['train']):,} train, {len(expected['val']):,} val"
    assert out.splitlines() == [
        f"s: {count} shards, {sizes} tokens",
        f"to train on them: {command('fit', '-c', 'small', '--data.corpus', 's')}",
    ]
    parts, tokenizer = open_shards("s")
    assert tokenizer == load_tokenizer("tok.json") and count > 10
    assert all((np.asarray(parts[part]) == expected[part]).all() for part in expected)


def test_shares_in_any_order_equal_one_run(run, monkeypatch):
    run("?.txt", "--tokenizer", "tok.json", "--out", "one")
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    for number in (3, 0, 2):
        code, out, _ = run("?.txt", "--tokenizer", "tok.json", "--out", "four", "--shard", f"{number}/4")
        assert code == 0 and out.splitlines()[1] == f"share {number}/4 is done; others are not yet"
    code, out, err = run("?.txt", "--tokenizer", "tok.json", "--out", "four", "--shard", "1/4")
    assert code == 0 and "to train on them" in out and "encoded ?.txt into tokens" in err
    assert content("four") == content("one")


@pytest.mark.parametrize("source", ["?.txt", "r/*.jsonl.gz"])
def test_groups_of_files_do_not_change_the_tokens_and_are_shared_out(source, run, monkeypatch):
    """Four documents, which are split by characters, and 200 in four files, split by documents."""
    Path("r").mkdir()
    for number in range(4):
        lines = "".join(json.dumps({"text": line}) + "\n" for line in LINES[number * 50 : number * 50 + 50])
        Path(f"r/{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    run(source, "--tokenizer", "tok.json", "--out", "together")
    monkeypatch.setattr(documents, "GROUP", 1)
    for number in (1, 2, 0):
        assert run(source, "--tokenizer", "tok.json", "--out", "shared", "--shard", f"{number}/3")[0] == 0
    run(source, "--tokenizer", "tok.json", "--out", "apart")
    assert content("shared") == content("apart") != content("together")
    assert Path("apart/train-00003-00000.bin").exists() and not Path("together/train-00001-00000.bin").exists()
    one, other = open_shards("together")[0], open_shards("apart")[0]
    for part in ("train", "val"):
        assert np.asarray(one[part]).tolist() == np.asarray(other[part]).tolist() != []


def test_verify_finds_a_flipped_bit_and_builds_that_shard_again(run):
    run("?.txt", "--tokenizer", "tok.json", "--out", "s")
    assert run("s", "--verify")[1].startswith("s: all shards are intact: ")
    good, path = content("s"), Path("s/train-00000-00003.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, out, err = run("s", "--verify")
    assert (code, out) == (65, "") and err.startswith("tinylm: error: s/train-00000-00003.bin: is missing or damaged;")
    code, _, err = run("?.txt", "--tokenizer", "tok.json", "--out", "s", "--verify")
    assert code == 0 and "tinylm: s: is damaged: encoding again 1 of " in err
    assert content("s") == good
    run("?.txt", "--tokenizer", "tok.json")
    [cache] = (path for path in Path("cache/tokens").iterdir() if path.is_dir())
    path = cache / "train-00000-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(b"\xff" + whole[1:])
    code, out, err = run("?.txt", "--tokenizer", "tok.json", "--verify")
    assert code == 0 and "the token cache of ?.txt is damaged: encoding again 1 of" in err
    assert path.read_bytes() == whole


@pytest.mark.parametrize("form", ["npy", "bin"])
def test_arrays_of_ids(form, run):
    code, out, _ = run("?.txt", "--tokenizer", "tok.json", "--out", "deep/ids", "--format", form)
    expected = cached()
    assert code == 0
    assert out.splitlines() == [f"deep/ids/{part}.{form}: {len(ids):,} tokens" for part, ids in expected.items()]
    for part, ids in expected.items():
        path = Path(f"deep/ids/{part}.{form}")
        found = np.load(path) if form == "npy" else np.fromfile(path, np.uint16)
        assert found.dtype == np.uint16 and found.tolist() == ids.tolist()
    code, _, err = run("?.txt", "--tokenizer", "tok.json", "--out", "deep/ids", "--format", form)
    assert code == 73 and "deep/ids/train" in err
    code, _, err = run("?.txt", "--tokenizer", "tok.json", "--out", "deep/ids", "--format", form, "--overwrite")
    assert code == (0 if form == "npy" else 73)  # bare numbers cannot be recognized


def test_options_of_reading_determine_the_documents(run):
    texts = ["one é", "two", "one é", "three 😀"]
    Path("d").mkdir()
    Path("d/a.jsonl").write_text("".join(json.dumps({"x": {"y": text}}) + "\n" for text in texts), encoding="utf-8")
    Path("d/b.md").write_text("no document")
    options = ["--tokenizer", "tok.json", "--format", "jsonl", "--split", "0.5", "0.5"]
    code, _, err = run("d", *options, "--out", "o", "--field", "x.y", "--deduplicate", "--include", "*.jsonl")
    assert code == 0, err
    assert "".join(piece for part in ("train", "val") for piece in decoded(f"o/{part}.jsonl")) == "one étwothree 😀"
    Path("s.txt").write_text("one--two--three", encoding="utf-8")
    run("s.txt", *options, "--out", "p", "--separator=--")
    assert decoded("p/train.jsonl") + decoded("p/val.jsonl") == [
        "one",
        "tw",
        "o",
        "three",
    ]  # 11 characters, cut after 5


def decoded(path):
    """The texts of the records of ids in a file."""
    records = map(json.loads, Path(path).read_text(encoding="utf-8").split("\n")[:-1])
    return [load_tokenizer("tok.json").decode(record["ids"]) for record in records]


def test_json_lines_have_a_document_each_with_the_pieces_that_join_to_its_text(run):
    for _ in range(2):
        code, _, _ = run("?.txt", "--tokenizer", "tok.json", "--out", "ids", "--format", "jsonl", "--overwrite")
        assert code == 0
    tokenizer = load_tokenizer("tok.json")
    corpus = open_corpus("?.txt", split=(0.9, 0.1), cache_dir=Path("cache"))
    for part in corpus.parts:
        texts = ["".join(text) for text in corpus.documents(part)]
        records = [json.loads(line) for line in Path(f"ids/{part}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
        assert [record["ids"] for record in records] == [tokenizer.encode(text) for text in texts]
        assert all(len(record["ids"]) == len(record["pieces"]) for record in records)
        for text, record in zip(texts, records, strict=True):
            assert all(piece in text or "\\x" in piece for piece in record["pieces"])
            assert "".join(record["pieces"]).split("é")[0].startswith(text.split("é")[0].split("\n")[0][:8])
    code, _, _ = run("0.txt", "--tokenizer", "tok.json", "--out", "one", "--format", "jsonl")
    assert code == 0 and Path("one/train.jsonl").read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.txt"], 2, "--tokenizer: missing; give the file of a tokenizer, or a kind such as bpe:8192"),
        (["0.txt", "--tokenizer", "no.json", "--out", "s"], 66, "no.json"),
        (["no.txt", "--tokenizer", "tok.json", "--out", "s"], 66, "no.txt: no such corpus or file"),
        (
            ["0.txt", "--tokenizer", "tok.json", "--out", "s", "--shard", "4/4"],
            2,
            "--shard must be i/n with i from 0 to",
        ),
        (["0.txt", "--tokenizer", "tok.json", "--out", "s", "--shard", "1"], 2, "--shard must be i/n with i from 0 to"),
        (
            ["0.txt", "--tokenizer", "tok.json", "--shard", "0/2"],
            2,
            "--shard: does not work without --out; leave it out",
        ),
        (
            ["0.txt", "--tokenizer", "bpe:300", "--out", "s", "--shard", "0/2"],
            2,
            "with --shard, train it first and give",
        ),
        (
            ["0.txt", "--tokenizer", "tok.json", "--format", "npy"],
            2,
            "--out: missing; give the folder of the npy files",
        ),
        (
            ["0.txt", "--tokenizer", "tok.json", "--out", "s", "--format", "npy", "--verify"],
            2,
            "--verify: does not work",
        ),
        (
            ["0.txt", "--tokenizer", "tok.json", "--out", "s", "--overwrite"],
            2,
            "--overwrite: does not work with --format",
        ),
        (["0.txt", "--tokenizer", "tok.json", "--out", "0.txt"], 73, "0.txt: exists and has no token shards of tinylm"),
        (["0.txt", "--tokenizer", "tok.json", "--out", "."], 73, "exists and has no token shards of tinylm"),
        (["0.txt", "--tokenizer", "tok.json", "--processes", "0"], 2, "--processes must be at least 1, got 0"),
        (["cache", "--verify"], 65, "cache: has no index.json; it is not a folder of token shards"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run):
    before = sorted(Path().iterdir())
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
    assert set(Path().iterdir()) - {Path("cache")} == set(before)


def test_shards_of_another_text_are_refused(run):
    run("0.txt", "--tokenizer", "tok.json", "--out", "s")
    before = content("s")
    code, out, err = run("1.txt", "--tokenizer", "tok.json", "--out", "s")
    assert (code, out) == (73, "")
    assert "s: has shards of 0.txt, of another text, split or tokenizer; choose another path, or remove it" in err
    assert content("s") == before


@pytest.fixture
def environment(tmp_path):
    """A shell's environment in which `tinylm` is this one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tinylm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tinylm "$@"\n')
    (tmp_path / "bin" / "tinylm").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TINYLM_CACHE": str(tmp_path / "cache")}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_slurm_array_writes_what_one_process_writes(run, environment):
    script = ROOT / "scripts" / "examples" / "tokens_slurm.sh"
    for number in (1, 0):
        slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        subprocess.run(["bash", script, "stories:50", "tok.json", "array"], env=environment | slurm, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tinylm", "prepare", "tokens", "stories:50", "--tokenizer", "tok.json", "--out", "one"],
        env=environment,
        check=False,
    )
    assert done.returncode == 0 and content("array") == content("one")


@pytest.mark.slow
def test_a_datatrove_pipeline_writes_what_one_process_writes(run, environment):
    pytest.importorskip("datatrove")
    script = ROOT / "scripts" / "examples" / "datatrove_tokens.py"
    command = [sys.executable, script, "stories:50", "tok.json", "trove", "--tasks", "3", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    words = ["prepare", "tokens", "stories:50", "--tokenizer", "tok.json", "--out", "one"]
    subprocess.run([sys.executable, "-m", "tinylm", *words], env=environment, check=True)
    assert content("trove") == content("one")
