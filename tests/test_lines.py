"""Lines of a user's files end with LF or CRLF alone, and a byte order mark is no character, in every reader.

Python's `splitlines` also splits at U+2028, NEL, form feed and others, and files opened as text at a lone CR.
"""

import bz2
import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import save_model
from tests.published import CASES
from tinylm.commands import run_command
from tinylm.commands.interactive import Model, converse
from tinylm.commands.output import read_prompts
from tinylm.data import open_corpus, read_pairs
from tinylm.generation import Generator
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import ByteTokenizer

# within a line: line separator, paragraph separator, next line, form feed, vertical tab, a lone CR, file separator
LINES = ["Once\u2028upon", "On\x85Monday\u2029", "\x0ca\x0bb", "c\rd", "e\x1cf"]
BOM = b"\xef\xbb\xbf"


def file_of(lines: list[str]) -> bytes:
    """A byte order mark, then the lines, which end with CRLF and LF by turns."""
    return BOM + b"".join(line.encode() + (b"\r\n", b"\n")[i % 2] for i, line in enumerate(lines))


def test_a_prompts_file_keeps_all_other_separators(tmp_path):
    (tmp_path / "p.txt").write_bytes(file_of(LINES))
    assert read_prompts(tmp_path / "p.txt") == LINES
    (tmp_path / "p.jsonl").write_bytes(file_of([json.dumps({"prompt": line}, ensure_ascii=False) for line in LINES]))
    assert read_prompts(tmp_path / "p.jsonl") == LINES


def test_compressed_prompts_are_those_of_the_file(tmp_path):
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(file_of(LINES)))
    (tmp_path / "p.jsonl.bz2").write_bytes(bz2.compress(b'{"prompt": "a\\u2028b"}\n'))
    assert read_prompts(tmp_path / "p.txt.gz") == LINES
    assert read_prompts(tmp_path / "p.jsonl.bz2") == ["a\u2028b"]


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("prompts_bom.txt", ["Once upon a time", "On Monday"]),
        ("prompts_bom.jsonl", ["Once upon a time"]),
        ("prompts_nel.txt", ["Once\x85upon", "On\x0cMonday", "A\u2028B"]),
        ("prompts_u2028.jsonl", ["Once upon a\u2028time", "On Monday"]),
    ],
)
def test_the_published_cases_hold(name, prompts):
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    assert read_prompts(path) == prompts


def test_pairs_keep_all_other_separators(tmp_path):
    records = [json.dumps({"prompt": line, "response": line}, ensure_ascii=False) for line in LINES]
    (tmp_path / "p.jsonl").write_bytes(file_of(records))
    (tmp_path / "p.csv").write_bytes(file_of(["prompt,response", *(f'"{line}","{line}"' for line in LINES)]))
    for name in ("p.jsonl", "p.csv"):
        assert [tuple(turn.content for turn in turns) for turns in read_pairs(tmp_path / name)] == [
            (line, line) for line in LINES
        ]


def test_a_corpus_of_lines_keeps_all_other_separators(tmp_path):
    (tmp_path / "l.txt").write_bytes(file_of(LINES))
    corpus = open_corpus(f"lines:{tmp_path / 'l.txt'}", split=(0.5, 0.5), cache_dir=tmp_path)
    assert sorted("".join(document) for _, document in corpus.items()) == sorted(LINES)


def test_piped_prompts_keep_all_other_separators(tmp_path, monkeypatch, capfd):
    tokenizer = ByteTokenizer()
    shape = dict(vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=64)
    generator = Generator(TransformerLM(ModelConfig(**shape)).eval(), tokenizer)
    prompts, begin = [], generator.begin
    monkeypatch.setattr(
        generator, "begin", lambda prompt, **options: prompts.append(prompt) or begin(prompt, **options)
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file_of(LINES)), encoding="latin-1"))
    converse(Model(generator), {"max_new_tokens": 1})
    assert prompts == LINES


def test_a_text_from_standard_input_has_no_byte_order_mark(tmp_path, monkeypatch, capfd):
    ByteTokenizer().save(tmp_path / "t.json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BOM + b"ab")))
    assert run_command("tokenizer", ["inspect", str(tmp_path / "t.json"), "-"]) == 0
    assert "2 tokens" in capfd.readouterr().out


def test_completions_written_to_jsonl_read_back_as_prompts_and_as_pairs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m")
    prompts = ["a\n b", "😀é"]
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = ["--model", "m", "--device", "cpu", "--max-new-tokens", "5", "--seed", "1"]
    assert run_command("generate", [*words, "--prompts-file", "p.jsonl", "--out", "o.jsonl"]) == 0
    assert read_prompts(Path("o.jsonl")) == prompts
    texts = [json.loads(line)["text"] for line in Path("o.jsonl").read_text(encoding="utf-8").strip().split("\n")]
    assert [tuple(turn.content for turn in turns) for turns in read_pairs("o.jsonl")] == [
        *zip(prompts, texts, strict=True)
    ]
