"""`tinylm prepare inspect`: figures by hand, and the same as those of the token cache and of the training windows."""

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.commands import run_command
from tinylm.data import open_corpus, open_tokens, resolve_tokenizer
from tinylm.data.evaluation_rows import document_begins, document_rows
from tinylm.data.inspection import inspect_corpus
from tinylm.data.lengths import Lengths

LINES = ["one", "two words", "one", "", "épée", "one", "a longer line of words"]


def opened(source: object, folder: Path, errors: str = "strict", split: tuple[float, ...] = (0.75, 0.25)):
    return open_corpus(str(source), split=split, cache_dir=folder / "cache", errors=errors)


# --- figures


def test_sizes_duplicates_and_examples_are_those_counted_by_hand(tmp_path):
    (tmp_path / "l.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    found = inspect_corpus(opened(f"lines:{tmp_path / 'l.txt'}", tmp_path), num_longest=2, num_samples=10)
    texts = [line for line in LINES if line]
    assert (found.total.documents, found.total.characters) == (6, sum(map(len, texts)))
    assert (found.total.bytes, found.total.tokens) == (sum(len(text.encode()) for text in texts), None)
    assert (found.num_duplicates, found.duplicate_share, found.num_invalid) == (2, 2 / 6, 0)  # the second and third one
    assert [(each.begin, each.length) for each in found.longest] == [("a longer line of words", 22), ("two words", 9)]
    assert [each.begin for each in found.samples] == texts
    assert (found.lengths.shortest, found.lengths.longest) == (3, 22)
    assert found.stored_bytes == len("\n".join(LINES).encode()) + 1


@pytest.mark.parametrize(
    ("source", "tokenizer"),
    [
        ("stories:300", "char"), ("stories:300", "bpe:300"), ("lines:{}/l.txt", "byte"), ("lines:{}/l.txt", "word"),
        ("{}/l.txt", "bpe:300"), ("{}/l.txt", "char"), ("{}/*.txt", "bpe:300"),
    ],
)  # fmt: skip
def test_tokens_of_each_part_are_those_that_training_gets(source, tokenizer, tmp_path):
    words = [f"{'é' * (i % 7)} word{i * i}" for i in range(60_000)]  # more than a block
    (tmp_path / "l.txt").write_text("\n".join(" ".join(words[i : i + i % 90 + 1]) for i in range(0, 60_000, 90)))
    (tmp_path / "m.txt").write_text("another file\n" * 9)
    corpus = opened(source.format(tmp_path), tmp_path)
    vocabulary = resolve_tokenizer(tokenizer, corpus, tmp_path)
    found = inspect_corpus(corpus, vocabulary, context=32)
    cached = open_tokens(corpus, vocabulary, tmp_path)
    assert {part: amount.tokens for part, amount in found.parts.items()} == {p: len(ids) for p, ids in cached.items()}
    if corpus.short_documents and vocabulary.end_of_text is not None:
        train = np.asarray(cached["train"])
        begins = document_begins(train, vocabulary.end_of_text)
        assert found.train_windows == len(document_rows(begins, len(train), 32).begins)
        lengths = [len(vocabulary.encode("".join(document))) for _, document in corpus.items()]
        assert (found.lengths.shortest, found.lengths.longest) == (min(lengths), max(lengths))


def test_a_document_that_the_split_cuts_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 100)
    found = inspect_corpus(opened(tmp_path / "a.txt", tmp_path))
    assert (found.total.documents, found.total.characters, found.lengths.longest) == (1, 400, 400)
    assert {part: (each.documents, each.characters) for part, each in found.parts.items()} == {
        "train": (1, 300), "val": (1, 100),
    }  # fmt: skip
    assert [each.begin for each in found.samples] == ["abcd" * 60]


def test_bytes_that_are_not_utf8_are_found_with_their_file_and_offset_without_stopping(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood")
    (tmp_path / "b.txt").write_bytes("é".encode() * 700_000 + b"ab\xffcd\xfe" + b"x" * 100)
    (tmp_path / "c.txt").write_bytes(b"\xe9t\xe9")
    found = inspect_corpus(opened(tmp_path / "*.txt", tmp_path, "surrogateescape"))
    assert [(Path(each.place.file).name, each.offset) for each in found.invalid] == [("b.txt", 1_400_002), ("c.txt", 0)]
    assert (found.num_invalid, found.total.documents) == (2, 3)
    assert found.total.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.txt")) - 3  # without the mark


def test_samples_are_drawn_evenly_and_by_the_seed_alone():
    corpus, drawn = open_corpus("stories:40", split=(0.9, 0.1), cache_dir=Path()), Counter()
    for seed in range(400):
        found = [each.place.number for each in inspect_corpus(corpus, num_samples=4, seed=seed).samples]
        assert len(set(found)) == 4 and found == sorted(found)
        drawn.update(found)
    # 40 each, with a standard deviation of 6
    assert set(drawn) == set(range(1, 41)) and min(drawn.values()) >= 15 and max(drawn.values()) <= 65
    once, again = (inspect_corpus(corpus, num_samples=4, seed=7).samples for _ in range(2))
    assert once == again


# --- histogram

many_lengths = st.lists(st.integers(1, 1 << 40) | st.integers(1, 40), min_size=1, max_size=60)


@given(many_lengths, st.integers(1, 30))
def test_bins_are_adjacent_and_count_every_length_once(lengths, most):
    histogram = Lengths()
    for length in lengths:
        histogram.add(length)
    bins = histogram.bins(most)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(bins))
    assert bins[0][2] and bins[-1][2] and bins[0][0] <= min(lengths) and bins[-1][1] >= max(lengths)
    for low, high, count in bins:
        assert count == sum(low <= length <= high for length in lengths)
    assert len(bins) <= most or len(bins) <= 12  # 40 octaves in bins of 4


@given(
    st.lists(st.integers(1, 1 << 40) | st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([0.1, 0.5, 1.0])
)
def test_a_quantile_is_at_most_an_eighth_too_large(lengths, share):
    histogram = Lengths()
    for length in lengths:
        histogram.add(length)
    exact = float(np.quantile(lengths, share, method="inverted_cdf"))
    assert exact <= histogram.quantile(share) <= exact * 9 / 8


# --- the command


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        return run_command("prepare", ["inspect", *map(str, words)]), *capfd.readouterr()

    return run


def test_the_report_has_eighty_columns_and_its_figures_are_in_the_file(run):
    words = ["--tokenizer", "bpe:300", "--max-steps", 100, "--max-seq-len", 512, "--json", "f.json", "--samples", 1]
    code, out, _ = run("stories:500", *words)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    figures, rows = json.loads(Path("f.json").read_text(encoding="utf-8")), [line.split() for line in out.splitlines()]
    assert ["documents", "500"] in rows and ["bytes", f"{figures['total']['bytes']:,}"] in [row[:2] for row in rows]
    train = figures["parts"]["train"]
    assert ["train", *(f"{train[name]:,}" for name in ("documents", "bytes", "characters", "tokens"))] in rows
    # each story fits 512 tokens, so a sequence is a story: 100 steps of 32 stories
    assert figures["training"]["epochs"] == 3200 / train["documents"]
    assert ["100", "steps", f"{3200 / train['documents']:.2f}", "epochs"] in rows
    assert sum(each["documents"] for each in figures["lengths"]["bins"]) == 500


def test_a_config_gives_what_training_would_take(run):
    Path("c.yaml").write_text(
        "model: {network: {max_seq_len: 16}}\ntrainer: {max_steps: 50}\n"
        "data: {corpus: a.txt, tokenizer: byte, batch_size: 4, split: [0.5, 0.25, 0.25]}\n"
    )
    Path("a.txt").write_text("abcd" * 400)
    code, out, err = run("-c", "c.yaml")
    assert (code, err) == (0, "") and "  a step       4 sequences of 16 tokens\n" in out
    assert "  50 steps     4.00 epochs" in out  # 3,200 tokens of the 800 in train
    assert [line.split()[0] for line in out.split("Parts")[1].splitlines()[2:5]] == ["train", "val", "test"]
    assert "an epoch     25.0 steps" in run("-c", "c.yaml", "--batch-size", 2)[1]


def test_without_a_tokenizer_none_is_trained_and_the_report_says_how_to_get_tokens(run):
    Path("a.txt").write_text("a b\n" * 99)
    code, out, err = run("a.txt")
    assert (code, err) == (0, "") and "not counted: give --tokenizer, such as bpe:2048 or tiktoken:gpt2" in out
    assert not Path("cache/tokenizers").exists()


def test_invalid_utf8_is_reported_and_tokens_are_those_of_replaced_bytes(run):
    Path("bad.txt").write_bytes(b"ab \xe9\n" * 200)
    code, out, err = run("bad.txt", "--tokenizer", "char")
    assert (code, err) == (0, "") and "bad.txt: at byte 3\n" in out
    assert ["tokens", "1,000"] in [line.split()[:2] for line in out.splitlines()]


def test_every_format_gives_the_same_figures_and_the_places_of_its_records(run, tmp_path):
    texts = [f"text {i % 110} é" * (i % 7 + 1) for i in range(120)]
    records = [json.dumps({"id": i, "a": {"b": text}}) for i, text in enumerate(texts)]
    records.insert(5, json.dumps({"id": -1, "a": {"b": ""}}))
    with gzip.open("f.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(records))
    Path("f.csv").write_text("a.b\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
    Path("f.txt").write_text("\n--\n".join(texts), encoding="utf-8")
    Path("notes").mkdir()
    for i, text in enumerate(texts):
        Path(f"notes/{i:03}.md").write_text(text, encoding="utf-8")
    Path("notes/other.txt").write_text("to be left out")
    found = {}
    for words, place in (
        (["f.jsonl.gz", "--field", "a.b"], "f.jsonl.gz: record"), (["f.csv", "--field", "a.b"], "f.csv: record"),
        (["f.txt", "--separator", "\n--\n"], "f.txt: document"), (["notes", "--include", "*.md"], "notes/"),
    ):  # fmt: skip
        code, _, err = run(*words, "--json", "f.json", "--overwrite", "--tokenizer", "bpe:300")
        assert code == 0, err
        figures = json.loads(Path("f.json").read_text(encoding="utf-8"))
        assert all(each["place"].startswith(place) for each in figures["longest"] + figures["samples"])
        assert figures["num_empty"] == (words[0] == "f.jsonl.gz")
        assert figures["stored_bytes"] == sum(path.stat().st_size for path in Path().glob(
            "notes/*.md" if words[0] == "notes" else words[0]))  # fmt: skip
        found[words[0]] = [figures[name] for name in ("total", "parts", "num_duplicates", "lengths")]
    assert all(each == found["f.csv"] for each in found.values())
    assert found["f.csv"][0]["documents"] == 120 and found["f.csv"][2] == len(texts) - len(set(texts))


def test_invalid_bytes_late_in_a_corpus_are_found_in_their_record(run):
    lines = [b'{"text": "%d"}' % i for i in range(300)]
    lines[250] = b'{"text": "ab\xff"}'
    Path("late.jsonl").write_bytes(b"\n".join(lines))
    code, out, err = run("late.jsonl", "--tokenizer", "bpe:300")
    assert code == 0 and "late.jsonl: record 251: at byte 2 of its text\n" in out, err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "which corpus? Give a file"),
        (["none.txt"], 66, "none.txt: no such corpus or file"),
        (["empty.txt"], 65, "empty.txt: is empty"),
        (["a.pdf"], 65, "a.pdf: is a PDF document, not text"),
        (["a.txt", "--max-steps", "9"], 2, "--max-steps: does not work without --tokenizer or --config; leave it out"),
        (["a.txt", "--overwrite"], 2, "--overwrite: does not work without --json; leave it out"),
        (["a.txt", "--samples", "-1"], 2, "--samples must be at least 0, got -1"),
        (["a.txt", "--split", "0.5"], 2, "data.split must be one to three positive fractions"),
        (["a.txt", "--tokenizer", "gpt2"], 2, "did you mean 'tiktoken:gpt2'?"),
        (["-c", "pairs.yaml"], 2, "pairs.yaml: trains on pairs; inspect reads a corpus"),
        (["a.txt", "--json", "a.txt"], 73, "a.txt: exists"),
    ],
)
def test_errors_are_one_line(words, code, message, run):
    Path("empty.txt").touch()
    Path("a.txt").write_text("a text\n" * 9)
    Path("a.pdf").write_bytes(b"%PDF-1.4\n" + b"1 0 obj\n" * 99)
    Path("pairs.yaml").write_text("data: {pairs: p.jsonl}\n")
    found, out, err = run(*words)
    assert (found, out) == (code, "") and err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
