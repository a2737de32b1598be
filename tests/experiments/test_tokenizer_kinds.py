"""scripts/examples/tokenizers.py, in miniature."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """The script as a module; it takes its folder from the path, as it is there when it is run."""
    path = ROOT / "scripts/examples/tokenizers.py"
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    spec = importlib.util.spec_from_file_location("tokenizer_kinds", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_runs_are_measured_once_and_compared_by_the_byte(script, tmp_path, monkeypatch, capsys):
    text = tmp_path / "t.txt"
    text.write_text("the whale swam. the owl slept. the cat sat on the mat. " * 60)
    out = tmp_path / "runs.jsonl"
    words = ["--out", str(out), "--corpora", str(text), "--sizes", "10", "280", "--flops", "2e9", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["tokenizers.py", *words, "--draw", str(tmp_path / "t.png")])
    script.main()
    rows = {each["tokenizer"]: each for each in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"char", "byte", "bpe:280", "unigram:280", "wordpiece:280"}
    for each in rows.values():  # nats of a token, times tokens of a byte
        expected = each["loss"] / math.log(2) * each["tokens_per_byte"]
        assert each["bits_per_byte"] == pytest.approx(expected)
    assert rows["char"]["tokens_per_byte"] == rows["byte"]["tokens_per_byte"] == 1.0
    assert rows["bpe:280"]["tokens_per_byte"] < 1.0
    assert (tmp_path / "t.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "bpe:10: left out (vocab_size must be at least" in printed
    assert "wordpiece:10: left out (" in printed  # not ranked by a text that it does not know
    script.main()
    assert len(out.read_text().splitlines()) == len(rows)
