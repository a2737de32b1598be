"""Files of every format, written by the libraries themselves, give the same documents, ids and batches."""

import csv
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.data import open_corpus, open_tokens, resolve_tokenizer
from tinylm.data.batches import TrainingBatches, TrainingWindows
from tinylm.data.corpora import Reading
from tinylm.data.records import json_records, split_text
from tinylm.data.sources import Source
from tinylm.errors import ConfigError, DataError, MissingInputError

END = "<|endoftext|>"
CODES = pa.dictionary(pa.int32(), pa.string())
SPLIT = (0.9, 0.1)
few = settings(max_examples=60, deadline=None)
datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(count=240):
    """Documents with quotes, line endings, unicode and characters that other programs take for line ends."""
    draw = random.Random(0)
    words = [
        "once",
        "upon",
        'a "time",',
        "it's; ",
        "tab\t",
        "é",
        "👩‍👧",
        "\u2028",
        "\x85",
        "\x0c",
        "\r\n",
        "\n\n",
        "\\n",
        "字",
        "{}",
    ]
    return [f"{number}: " + " ".join(draw.choices(words, k=draw.randint(1, 60))) for number in range(count)]


def opened(source, split=SPLIT, **options):
    reading = Reading(**options)
    return open_corpus(str(source), split=split, cache_dir=Path("cache"), reading=reading)


def joined(corpus, part=None):
    return ["".join(document) for found, document in corpus.items() if part in (None, found)]


def write_lines(path, documents, **options):
    path.write_text("".join(json.dumps({"id": 7, "text": each}, **options) + "\n" for each in documents))


def write_list(path, documents, **options):
    path.write_text(json.dumps([{"text": each} for each in documents], **options))


def write_csv(path, documents, **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **options)
        writer.writerow(["id", "text"])
        writer.writerows([number, each] for number, each in enumerate(documents))


def write_arrow(path, documents, kind):
    table = pa.table({"id": range(len(documents)), "text": pa.array(documents, kind)})
    with (pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def write_parquet(path, documents, kind, **options):
    table = pa.table({"id": range(len(documents)), "text": pa.array(documents, kind)})
    pa.parquet.write_table(table, path, row_group_size=70, **options)


def write_dataset(path, documents):
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(path, num_shards=min(3, len(documents)))


def write_files(path, documents):
    path.mkdir()
    for number, each in enumerate(documents):
        (path / f"{number:04}.txt").write_bytes(each.encode())


WRITERS = {
    "lines.jsonl": write_lines,
    "raw.ndjson": lambda path, documents: write_lines(path, documents, ensure_ascii=False),
    "list.json": write_list,
    "pretty.json": lambda path, documents: write_list(path, documents, indent=2),
    "strings.json": lambda path, documents: path.write_text(json.dumps(documents)),
    "a.csv": write_csv,
    "semicolons.csv": lambda path, documents: write_csv(path, documents, delimiter=";", lineterminator="\n"),
    "a.tsv": lambda path, documents: write_csv(path, documents, delimiter="\t", quoting=csv.QUOTE_ALL),
    "a.parquet": lambda path, documents: write_parquet(path, documents, pa.string()),
    "large.parquet": lambda path, documents: write_parquet(path, documents, pa.large_string(), compression="zstd"),
    "dictionary.parquet": lambda path, documents: write_parquet(path, documents, CODES),
    "stream.arrow": lambda path, documents: write_arrow(path, documents, pa.string()),
    "file.feather": lambda path, documents: write_arrow(path, documents, pa.large_string()),
    "dictionary.feather": lambda path, documents: write_arrow(path, documents, CODES),
    "saved": write_dataset,
    "separated.txt": lambda path, documents: path.write_bytes(END.join(documents).encode()),
    "folder": write_files,
    "plain": lambda path, documents: pa.feather.write_feather(pa.table({"text": documents}), path, compression="lz4"),
}  # fmt: skip


def batches(corpus):
    """The ids, and the first 100 batches."""
    tokenizer = resolve_tokenizer("bpe:400", corpus, Path("cache"))
    ids = open_tokens(corpus, tokenizer, Path("cache"))
    windows = TrainingWindows(len(ids["train"]), 32, 4, 0)
    steps = TrainingBatches(ids["train"], windows, 1, 1, 0)
    first = np.concatenate([np.asarray(steps[step].inputs).ravel() for step in range(100)])
    return tokenizer.sha256, {part: np.array(found) for part, found in ids.items()}, first


def assigned(documents):
    """The documents of train and val, by the SHA-256 of each."""
    shares = [int.from_bytes(hashlib.sha256(each.encode()).digest()[:7], "big") / 256**7 for each in documents]
    parts = ["train" if share < 0.9 else "val" for share in shares]
    return {part: [each for each, found in zip(documents, parts, strict=True) if found == part] for part in SPLIT_PARTS}


SPLIT_PARTS = ("train", "val")


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_documents_that_its_library_wrote(name, folder):
    documents = texts()
    WRITERS[name](folder / name, documents)
    corpus = opened("folder/*.txt" if name == "folder" else name)
    assert joined(corpus) == documents
    assert {part: joined(corpus, part) for part in corpus.parts} == assigned(documents)
    assert [["".join(each) for each in corpus.documents(part)] for part in corpus.parts] == [
        *assigned(documents).values()
    ]
    assert corpus.separated and not corpus.short_documents


def test_every_format_gives_the_same_ids_and_the_same_first_batches(folder):
    documents = texts()
    found = {}
    for name, write in WRITERS.items():
        write(folder / name, documents)
        found[name] = batches(opened("folder/*.txt" if name == "folder" else name))
    sha256, ids, first = found.pop("lines.jsonl")
    assert len(ids["train"]) > 100 * 32
    for name, (other, others, other_first) in found.items():
        assert other == sha256, name
        assert all(np.array_equal(ids[part], others[part]) for part in SPLIT_PARTS), name
        assert np.array_equal(first, other_first), name


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "a.csv", "separated.txt", "a.parquet", "stream.arrow"])
@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_give_the_same(name, suffix, compress, folder):
    WRITERS[name](folder / name, texts())
    (folder / f"{name}{suffix}").write_bytes(compress((folder / name).read_bytes()))
    assert joined(opened(f"{name}{suffix}")) == texts()


# --- fields


NESTED = {"a.b": "dotted", "a": {"b": "nested", "c": {"d": "deep"}}, "text": "plain"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.feather"])
@pytest.mark.parametrize(("field", "text"), [("text", "plain"), ("a.b", "dotted"), ("a.c.d", "deep")])
def test_a_field_is_found_by_its_name_and_then_by_its_path(name, field, text, folder):
    record = NESTED if name != "a.json" else [NESTED]
    if name.startswith("a.json"):
        Path(name).write_text(json.dumps(record))
    else:
        table = pa.Table.from_pylist([NESTED])
        (pa.parquet.write_table if name == "a.parquet" else pa.feather.write_feather)(table, name)
    assert "".join(joined(opened(name, field=field))) == text


def test_a_list_within_an_object_is_read_if_the_field_names_it(folder):
    records = [{"text": each} for each in texts(120)]
    for indent in (None, 1):
        Path("a.json").write_text(json.dumps({"version": {"n": [1, "]"]}, "data": records, "end": 1}, indent=indent))
        assert joined(opened("a.json", field="data.text")) == texts(120)
        with pytest.raises(
            DataError, match=r"a\.json: holds a list of records under data; set data\.field=data\.text$"
        ):
            opened("a.json")
    Path("b.json").write_text(json.dumps({"x": {"y": records}}, indent=1))
    assert joined(opened("b.json", field="x.y.text")) == texts(120)


def test_a_file_may_hold_a_single_record(folder):
    for number, text in enumerate(texts(120)):
        Path(f"{number:03}.json").write_text(json.dumps({"id": number, "text": text}, indent=number % 2 or None))
    assert joined(opened("*.json")) == texts(120)


def test_json_that_holds_no_records_is_a_text(folder):
    bare = ('"text"', "7", "null", "{}", "[[1, 2], [3]]")
    for content in (*bare, '{"name": "x", "version": "1"}', '{\n "files": ["a", "b"]\n}\n'):
        Path("package.json").write_text(content)
        assert "".join(joined(opened("package.json"))) == content


# --- JSON, piece by piece


@few
@given(st.lists(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
                             lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3)),
                max_size=6), st.lists(st.integers(0, 300), max_size=9), st.sampled_from([None, 1]))  # fmt: skip
@example([-12.5e-7, True], [6, 7], None)
@example([0, [], 0.0], [10], None)
def test_a_list_is_read_alike_wherever_the_chunks_end(records, cuts, indent):
    text = json.dumps(records, indent=indent)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    found = list(json_records((text[a:b] for a, b in pairwise(bounds)), "a.json"))
    assert [record for record, _ in found] == records
    assert [place for _, place in found] == [f"record {number}" for number in range(1, len(records) + 1)]


@few
@given(st.lists(st.text("ab\n", max_size=5), max_size=6))
def test_texts_between_separators_are_those_of_split(chunks):
    assert list(split_text(chunks, "\n")) == "".join(chunks).split("\n")
    assert list(split_text(chunks, "ab")) == "".join(chunks).split("ab")


# --- errors, each of one line

GOOD = '{"text": "good"}\n'
REFUSED = {
    "lacking.jsonl": (GOOD + '{"title": "a", "body": "b"}', "line 2: has no text; it has title, body: set data.field"),
    "lacking.csv": ("title,body\na,b\n", "line 1: has no text; it has title, body: set data.field"),
    "inner.jsonl": ('{"a": {"c": "d"}}', "line 1: has no a.b; it has a.c: set data.field"),
    "pairs.jsonl": ('{"prompt": "a", "response": "b"}', "holds prompts and responses, not plain text; give it as"),
    "pairs.csv": ("question,answer\na,b\n", "holds prompts and responses, not plain text; give it as"),
    "null.jsonl": ("\n" + GOOD + '{"text": null}', "line 3: text is null; give it a text, or remove the record"),
    "number.jsonl": (GOOD + '{"text": 7}', "line 2: text must be a string, got 7; set data.field to a field of text"),
    "list.jsonl": ('{"text": ["a"]}', 'line 1: text must be a string, got ["a"]; set'),
    "value.jsonl": (GOOD + "7", 'line 2: must be an object such as {"text": "..."}, got 7'),
    "cut.jsonl": (GOOD + '{"text": "a', "line 2: is not valid JSON (Unterminated string starting at column 10)"),
    "words.jsonl": (GOOD + "Once upon a time", "line 2: is not valid JSON (Expecting value at column 1); repair"),
    "cut.json": ('[{"text": "a"}, {"text"', "is not valid JSON (record 2: Expecting ':' delimiter); repair it"),
    "open.json": ('[{"text": "a"}', "is not valid JSON (no comma or ] after record 1); repair it"),
    "twice.json": ('[{"text": "a"}] [{"text": "b"}]', "has more text after its list; remove it"),
    "early.json": ('[{"text": "a"}, {"text": oops}' + ', {"text": "b"}' * 99, "is not valid JSON (record 2: Expecting"),
    "deep.json": ('[{"text":' + "[" * 100_000, "is not valid JSON (record 1: "),
    "lone.jsonl": (GOOD + r'{"text": "a\ud83d"}', r"line 2: has a lone surrogate, \ud83d; repair the record, or"),
    "lone.json": (r'["\ude00"]', r"record 1: has a lone surrogate, \ude00; repair"),
    "few.csv": ("id,text\n1,a\n2\n", "line 3: must have 2 columns as in line 1; put text with commas in quotes"),
    "quote.csv": ('text\n"a\n', "line 2: is not valid CSV (unexpected end of data); repair it"),
    "u16.jsonl": (GOOD.encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
    "u16.csv": ("text\nabc\n".encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
    "latin.jsonl": (GOOD.encode() + '{"text": "caf\xe9"}'.encode("latin-1"), "is not UTF-8 at byte 30 (invalid cont"),
    "empty.jsonl": ("\n\n", "is empty"),
    "blank.jsonl": ('{"text": ""}\n{"text": " \\n"}\n', "is empty"),
    "head.csv": ("id,text\n", "is empty"),
    "text.parquet": ("Once upon a time", "is not a valid Parquet file, or is truncated or damaged ("),
    "text.arrow": ("Once upon a time", "is not a valid Arrow file, or is truncated or damaged ("),
    "old.feather": (b"FEA1" + bytes(40), "is Feather, version 1; write it again with pyarrow.feather"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_file_the_place_and_the_remedy(name, folder):
    content, problem = REFUSED[name]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        joined(opened(name, field="a.b" if name == "inner.jsonl" else "text"))
    assert str(caught.value).removeprefix("data.corpus: ").startswith(f"{name}: {problem}")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 65


def write_columns():
    table = pa.table({"id": range(500), "text": [f"{number} " * 50 for number in range(500)], "list": [["a"]] * 500})
    pa.parquet.write_table(table, "whole.parquet", row_group_size=100)
    pa.feather.write_feather(table, "whole.feather", chunksize=100)


@pytest.mark.parametrize(("suffix", "end"), [("parquet", 8), ("feather", 10)])  # bytes after the footer
def test_a_damaged_footer_and_a_cut_file_are_one_line(suffix, end, folder):
    write_columns()
    data = Path(f"whole.{suffix}").read_bytes()
    footer = len(data) - end - int.from_bytes(data[-end : 4 - end], "little")
    damaged = data[:footer] + b"\xff" * 40 + data[footer + 40 :]
    problem = rf"^a\.{suffix}: is not a valid (Parquet|Arrow) file, or is truncated or damaged \("
    for damage in (damaged, data[:-9], data[: len(data) // 2], data[:10], data[:-4] + b"oops"):
        Path(f"a.{suffix}").write_bytes(damage)
        with pytest.raises(DataError, match=problem) as caught:
            joined(opened(f"a.{suffix}"))
        assert "\n" not in str(caught.value)


def test_a_stream_that_ends_in_a_batch_is_one_line(folder):
    write_arrow(folder / "a.arrow", texts(), pa.string())
    data = Path("a.arrow").read_bytes()
    Path("a.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"^a\.arrow: is not a valid Arrow file, or is truncated or damaged \("):
        joined(opened("a.arrow"))


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_a_column_without_texts_is_named(suffix, folder):
    write_columns()
    for field, problem in {
        "txt": "has no txt; it has id, text, list: set data.field",
        "text.a": "has no text.a; it has no fields: set data.field",
        "id": "id must be a column of strings, is int64; set data.field to one of text",
        "list": "list must be a column of strings, is list<",
    }.items():
        with pytest.raises(DataError) as caught:
            opened(f"whole.{suffix}", field=field)
        assert str(caught.value).startswith(f"whole.{suffix}: {problem}")
    table = pa.table({"text": ["a", None]})
    (pa.parquet.write_table if suffix == "parquet" else pa.feather.write_feather)(table, f"null.{suffix}")
    with pytest.raises(DataError, match=rf"^null\.{suffix}: record 2: text is null; give it a text"):
        opened(f"null.{suffix}")


def test_bytes_in_a_column_that_are_not_utf8_are_refused_or_replaced(folder):
    texts = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    pa.parquet.write_table(pa.table({"text": texts}), "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet: record 2: is not UTF-8 at byte 3 \(.*data\.errors=replace"):
        opened("a.parquet")
    corpus = open_corpus("a.parquet", split=SPLIT, cache_dir=folder, errors="replace")
    assert "".join(joined(corpus)) == "goodcaf\ufffd"


def test_lone_surrogates_are_replaced_if_asked(folder):
    Path("a.jsonl").write_text(r'{"text": "a\ud83d b \ud83d\ude00"}')
    corpus = open_corpus("a.jsonl", split=SPLIT, cache_dir=folder, errors="replace")
    assert "".join(joined(corpus)) == "a\ufffd b 😀"


def test_nul_bytes_are_kept_and_a_byte_order_mark_is_not(folder):
    for name, content in {
        "raw.jsonl": '{"text": "a\0b"}\n',
        "escaped.jsonl": '{"text": "a\\u0000b"}\n',
        "a.json": '[{"text": "a\0b"}]',
        "a.csv": "text\na\0b\n",
        "a.tsv": "text\tid\na\0b\t1\n",
        "a.txt": "a\0b",
        "separated.txt": "a<|endoftext|>\0b",
    }.items():
        Path(name).write_text(content, encoding="utf-8-sig", newline="")
        assert "".join(joined(opened(name))) == "a\0b", name


def test_empty_records_are_skipped_and_counted_once(folder, capsys):
    documents = [*texts(150), "", " \n", "end"]
    write_lines(folder / "a.jsonl", documents)
    corpus = opened("a.jsonl")
    capsys.readouterr()
    assert joined(corpus) == joined(corpus) == [*texts(150), "end"]
    assert capsys.readouterr().err == "tinylm: a.jsonl: 2 of 153 records are empty and are skipped\n"


MEASURE = """
import resource, sys
from pathlib import Path
from tinylm.data.corpora import open_corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = open_corpus(sys.argv[1], split=(0.9, 0.1), cache_dir=Path("cache"))
length = sum(len(chunk) for _, document in corpus.items() for chunk in document)
print(length, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def measure(name):
    """Characters read from a corpus, and the MB that reading it took."""
    done = subprocess.run([sys.executable, "-c", MEASURE, name], capture_output=True, text=True, check=True)
    length, megabytes = map(int, done.stdout.split())
    return length, megabytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_line_of_200_mb_takes_the_memory_of_its_format(folder):
    line = "once upon a time " * (200_000_000 // 17)
    Path("a.txt").write_text(line)
    length, megabytes = measure("a.txt")
    assert length == len(line) and megabytes < 30
    Path("a.jsonl").write_text(json.dumps({"text": line}) + "\n" + GOOD)
    length, megabytes = measure("a.jsonl")
    assert length == len(line) + 4 and megabytes < 5 * 200
    Path("a.json").write_text(json.dumps([{"text": "x" * 1000}] * 200_000))
    length, megabytes = measure("a.json")
    assert length == 200_000_000 and megabytes < 30
    pa.parquet.write_table(pa.table({"text": ["y" * 1000 + str(n) for n in range(200_000)]}), "a.parquet")
    length, megabytes = measure("a.parquet")
    assert length > 200_000_000 and megabytes < 150


# --- separators


def test_texts_between_separators_are_documents_and_unchanged(folder, capsys):
    Path("a.txt").write_text(f"\none\n{END}\ntwo \n{END}\n \n{END}{END}three")
    corpus = opened("a.txt", (0.5, 0.5))
    assert "|".join(joined(corpus)) == "\none\n|\ntw|o \n|three"  # 16 characters, cut at the eighth
    assert corpus.separated
    assert (
        capsys.readouterr().err
        == 'tinylm: a.txt: <|endoftext|> separates documents; set data.separator="" to read it as text\n'
    )


def test_a_separator_that_is_only_mentioned_in_quotes_separates_nothing(folder, capsys):
    for text in (f"The token `{END}` ends it.", f'a = "{END}"\n' * 3, f"'{END}'"):
        for before in (0, (1 << 20) - 3 - len(text), (1 << 20) - 12, (1 << 20) - 1):
            Path("a.md").write_text("x" * max(before, 0) + text)
            corpus = opened("a.md")
            assert "".join(corpus.texts()) == "x" * max(before, 0) + text and not corpus.separated
    assert capsys.readouterr().err == ""
    Path("a.md").write_text("x" * ((1 << 20) - 12) + f'{END}"')
    assert opened("a.md").separated


def test_any_separator_can_be_set_and_none(folder):
    Path("a.txt").write_text(f"one---two{END}---\n---three")
    assert "|".join(joined(opened("a.txt", (0.99, 0.01), separator="---"))) == f"one|two{END}|thre|e"
    corpus = opened("a.txt", separator="")
    assert "".join(joined(corpus)) == f"one---two{END}---\n---three" and not corpus.separated
    with pytest.raises(ConfigError, match=r"data\.separator: a\.txt: does not contain '==='; leave it out"):
        opened("a.txt", separator="===")


def test_the_tokenizer_never_sees_the_separator(folder):
    Path("a.txt").write_text(END.join(texts(150)))
    corpus = opened("a.txt")
    tokenizer = resolve_tokenizer("bpe:300", corpus, folder)
    ids = open_tokens(corpus, tokenizer, folder)
    assert tokenizer.end_of_text is not None
    assert tokenizer.decode(ids["val"].tolist()).split(END)[:-1] == assigned(texts(150))["val"]
    assert sum(int((ids[part] == tokenizer.end_of_text).sum()) for part in SPLIT_PARTS) == 150
    assert not any("endof" in tokenizer.decode([i]) for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text)


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        ("a.jsonl", dict(separator="---"), "data.separator: is for plain text; a record is a document, leave it out"),
        ("a.txt", dict(field="body"), "data.field: is for records (JSON, CSV, Parquet, Arrow); leave it out"),
        ("a.txt", dict(deduplicate=True), "data.deduplicate: a.txt: is a single document; leave it out"),
        ("stories:5", dict(deduplicate=True), "data.deduplicate: does not work with stories:5; leave it out"),
        ("names", dict(field="name"), "data.field: does not work with names; leave it out"),
        ("lines:a.txt", dict(separator="x"), "data.separator: does not work with lines:a.txt; leave it out"),
        ("saved", dict(separator="x"), "data.separator: does not work with saved; leave it out"),
    ],
)
def test_an_option_that_does_nothing_is_an_error(source, options, problem, folder):
    Path("a.txt").write_text("Once upon a time")
    Path("a.jsonl").write_text(GOOD)
    write_dataset(folder / "saved", ["a", "b", "c"])
    with pytest.raises(ConfigError) as caught:
        opened(source, **options)
    assert str(caught.value) == problem
    with pytest.raises(ConfigError, match=r"data\.field: is empty"):
        Reading(field="")


# --- splitting, groups, fingerprints


@pytest.mark.parametrize("count", [2, 99, 100])
def test_fewer_than_100_documents_are_split_by_characters(count, folder):
    documents = texts(count)
    found = {}
    for name in ("lines.jsonl", "list.json", "a.csv", "a.parquet", "saved", "separated.txt", "folder"):
        WRITERS[name](folder / name, documents)
        corpus = opened("folder/*" if name == "folder" else name)
        found[name] = {part: [*map("".join, corpus.documents(part))] for part in corpus.parts}
        assert [*map("".join, corpus.texts())] == [
            each for part in found[name].values() for each in part
        ] or count == 100
    whole = "".join(documents)
    for parts in found.values():
        if count == 100:
            assert parts == assigned(documents)
        else:
            assert "".join(parts["train"]) == whole[: int(len(whole) * 0.9)]
            assert "".join(parts["val"]) == whole[int(len(whole) * 0.9) :]
            assert parts["train"][:-1] == documents[: len(parts["train"]) - 1]


@pytest.mark.parametrize("count", [60, 300])
@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_groups_are_the_corpus_and_are_read_in_any_order(count, deduplicate, folder, monkeypatch):
    monkeypatch.setattr("tinylm.data.corpora.documents.GROUP", 4000)
    documents = texts(count // 2) * 2
    for number in range(6):
        write_lines(folder / f"{number}.jsonl", documents[number * count // 6 : (number + 1) * count // 6])
    corpus = opened("*.jsonl", deduplicate=deduplicate)
    assert corpus.num_groups > 2
    backwards = {}
    for group in reversed(range(corpus.num_groups)):
        one = opened("*.jsonl", deduplicate=deduplicate)
        backwards[group] = [(part, "".join(document)) for part, document in one.items(group)]
    whole = [(part, "".join(document)) for part, document in corpus.items()]
    assert [each for group in sorted(backwards) for each in backwards[group]] == whole
    found = "".join(text for _, text in whole)
    assert found == "".join(texts(count // 2) if deduplicate else documents)


@pytest.mark.parametrize("name", ["lines.jsonl", "separated.txt", "a.parquet"])
@pytest.mark.parametrize("count", [20, 200])
def test_a_corpus_may_have_a_training_part_alone(name, count, folder):
    WRITERS[name](folder / name, texts(count))
    corpus = opened(name, (1.0,))
    assert corpus.parts == ("train",) and joined(corpus, "train") == texts(count)


def test_opening_a_large_corpus_reads_100_documents(folder):
    write_lines(folder / "a.jsonl", texts(100))
    with Path("a.jsonl").open("a") as file:
        file.write("\n" * (3 << 20) + "this is not JSON\n")  # beyond the first blocks
    corpus = opened("a.jsonl")
    with pytest.raises(DataError, match=r"^a\.jsonl: line 3145829: is not valid JSON"):
        joined(corpus)


def sha256(data):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def test_fingerprints_of_texts_are_those_of_earlier_versions(folder):
    """So that caches stay valid. The recipe is written out again here."""
    Path("a.txt").write_bytes(b"\xef\xbb\xbfOnce")
    Path("b.txt").write_bytes(b"upon")
    recipe = {
        "a.txt": ["files", [sha256("Once")], [0.9, 0.1], "strict"],
        "?.txt": ["files", [sha256("Once"), sha256("upon")], [0.9, 0.1], "strict"],
        "lines:a.txt": ["lines", [sha256("Once")], [0.9, 0.1], "strict"],
        "own": ["tinystories", [sha256("Once"), sha256("upon")], ["train", "val"], "strict"],
    }
    Path("own").mkdir()
    Path("own/train.txt").write_text("Once")
    Path("own/val.txt").write_text("upon")
    for source, content in recipe.items():
        assert opened(source).fingerprint == sha256(json.dumps(content, separators=(",", ":"))), source


def test_fingerprints_depend_on_content_format_and_options_and_not_on_the_path(folder):
    write_lines(folder / "a.jsonl", texts())
    Path("deep").mkdir()
    Path("deep/b.jsonl").write_bytes(Path("a.jsonl").read_bytes())
    Path("c.txt").write_bytes(Path("a.jsonl").read_bytes())
    write_lines(folder / "d.jsonl", texts(239))
    assert opened("a.jsonl").fingerprint == opened("deep/b.jsonl").fingerprint
    Path("e.jsonl").write_text(Path("a.jsonl").read_text().replace('"text"', '"body"'))
    corpora = [opened("a.jsonl"), opened("a.jsonl", deduplicate=True), opened("a.jsonl", (0.8, 0.2)), opened("c.txt"),
               opened("d.jsonl"), opened("e.jsonl", field="body")]  # fmt: skip
    assert len({corpus.fingerprint for corpus in corpora}) == len(corpora)


# --- parts of its own


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_folder_with_files_of_parts_has_these(suffix, val, folder):
    write = {".jsonl": write_lines, ".csv": write_csv, ".parquet": WRITERS["a.parquet"]}[suffix]
    documents = texts(30)
    Path("own").mkdir()
    write(folder / f"own/train{suffix}", documents[:20])
    write(folder / f"own/{val}{suffix}", documents[20:25])
    two, three = opened("own"), opened("own", (0.8, 0.1, 0.1))
    assert [joined(two, part) for part in two.parts] == [documents[:20], documents[20:25]]
    assert [joined(three, part) for part in three.parts] == [documents[:20], documents[20:25:2], documents[21:25:2]]
    assert two.more("val") == f"put more text into {Path(f'own/{val}{suffix}')}"
    write(folder / f"own/test{suffix}", documents[25:])
    corpus = opened("own")
    assert {part: [*map("".join, corpus.documents(part))] for part in corpus.parts} == {
        "train": documents[:20], "val": documents[20:25], "test": documents[25:],
    }  # fmt: skip
    Path("own/train.txt").write_text("Which one?")
    with pytest.raises(DataError, match=rf"data\.corpus: own: has train{suffix}, train\.txt for one part; keep one of"):
        opened("own")


def test_source_code_and_compressed_files_in_a_folder_of_parts(folder):
    Path("code").mkdir()
    for name in ("train.py", "val.py", "model.py"):
        Path(f"code/{name}").write_text(f"# {name}\n")
    assert "model.py" in "".join(joined(opened("code")))
    Path("own").mkdir()
    for name, documents in {"train": texts(20), "val": texts(3)}.items():
        write_lines(folder / "lines", documents)
        Path(f"own/{name}.jsonl.gz").write_bytes(gzip.compress(Path("lines").read_bytes()))
    corpus = opened("own")
    assert [joined(corpus, part) for part in corpus.parts] == [texts(20), texts(3)]
    Path("own/val.jsonl.gz").write_bytes(gzip.compress(b"\n"))
    with pytest.raises(DataError, match=r"data\.corpus: own: its val part is empty"):
        opened("own")


def test_numbered_files_of_a_part_are_read_in_order(folder):
    Path("own").mkdir()
    for number in range(3):
        write_lines(folder / f"own/train-0000{number}-of-00003.jsonl", texts(30)[number * 10 : number * 10 + 10])
    write_lines(folder / "own/validation-00000-of-00001.jsonl", ["the end"])
    corpus = opened("own")
    assert joined(corpus, "train") == texts(30) and joined(corpus, "val") == ["the end"]


def test_duplicates_are_left_out_across_parts(folder, capsys):
    Path("own").mkdir()
    write_lines(folder / "own/train.jsonl", ["a", "b", "a", "c"])
    write_lines(folder / "own/val.jsonl", ["d", "b", "e"])
    for _ in range(2):
        corpus = opened("own", deduplicate=True)
        assert [joined(corpus, part) for part in corpus.parts] == [["a", "b", "c"], ["d", "e"]]
    assert capsys.readouterr().err == "tinylm: own: 2 of 7 documents occurred before and are left out\n"


def test_a_dataset_dict_has_its_parts(folder):
    splits = {"train": texts(20), "validation": ["v1", "v2"], "test": ["t"]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": each}) for name, each in splits.items()})
    saved.save_to_disk("all")
    corpus = opened("all")
    assert [joined(corpus, part) for part in ("train", "val", "test")] == [*splits.values()]
    datasets.DatasetDict({name: saved[name] for name in ("train", "test")}).save_to_disk("two")
    with pytest.raises(
        ConfigError, match=r"two: has the splits train, test, not train and validation; name .*: two/train"
    ):
        opened("two")
    assert "".join(joined(opened("two/train"))) == "".join(texts(20))
    datasets.DatasetDict(train=saved["train"]).save_to_disk("one")
    assert "".join(joined(opened("one"))) == "".join(texts(20))


def test_the_files_of_a_dataset_are_read_in_the_order_of_its_state(folder):
    write_dataset(folder / "saved", texts(30))
    state = json.loads(Path("saved/state.json").read_text())
    state["_data_files"].reverse()
    Path("saved/state.json").write_text(json.dumps(state))
    assert "".join(joined(opened("saved"))) == "".join(texts(30)[20:] + texts(30)[10:20] + texts(30)[:10])
    Path("saved/data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"saved: lacks data-00001-of-00003\.arrow, which state\.json names; copy"):
        opened("saved")
    Path("saved/state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: has no _data_files; save the data set again"):
        opened("saved")


# --- the Hub


def test_a_data_set_is_streamed_by_its_name(folder):
    Path("set").mkdir()
    write_lines(folder / "set/train.jsonl", texts())
    corpus = opened("hf:./set")
    assert joined(corpus) == texts() and joined(opened("hf:./set:train")) == texts()
    write_lines(folder / "set/train.jsonl", texts(239))
    assert opened("hf:./set").fingerprint != corpus.fingerprint
    with pytest.raises(ConfigError, match=r"hf:\./set:trian: has no split trian, did you mean 'train'\?; it has train"):
        opened("hf:./set:trian")
    with pytest.raises(DataError, match=r"hf:\./set:train: has no body; it has id, text: set data\.field"):
        opened("hf:./set", field="body")


@pytest.mark.slow
def test_a_data_set_that_cannot_be_reached_is_one_line(folder):
    code = "from tinylm.data import open_corpus; open_corpus('hf:nobody/nothing', split=(0.9, 0.1), cache_dir='.')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tinylm.errors.MissingInputError: data.corpus: hf:nobody/nothing: cannot be read (")


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("hf:a/b", "datasets")])
def test_a_missing_package_is_named_with_what_to_install(name, package, folder, monkeypatch):
    Path("a.parquet").write_bytes(b"PAR1")
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingInputError, match=rf'{name}: needs {package}; pip install "tinylm\[data\]"'):
        opened(name)


def test_a_missing_file_is_answered_with_the_one_beside_it(folder):
    Path("deep").mkdir()
    write_lines(folder / "deep/notes.jsonl", texts(3))
    with pytest.raises(
        MissingInputError, match=r"deep/note\.jsonl: no such corpus or file, did you mean 'deep/notes\.jsonl'\?"
    ):
        opened("deep/note.jsonl")


def test_a_source_without_a_known_suffix_is_told_by_its_first_bytes(folder):
    WRITERS["a.parquet"](folder / "part-0000", texts())
    assert joined(opened("part-0000")) == texts()
    assert Source("part-0000").suffix == ""
