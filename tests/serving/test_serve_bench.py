"""scripts/bench/serve.py runs in miniature."""

import re
import sys

import pytest

from scripts.bench import serve as bench
from tests.serving.http_servers import LETTERS, make_model
from tinylm.bundle import save_bundle


@pytest.mark.slow
def test_the_bench_prints_rates_and_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TOKENS", 8)
    monkeypatch.setattr(bench, "CLIENTS", (1, 3))
    monkeypatch.setattr(bench, "PROMPT", "abc")
    save_bundle(tmp_path / "model", make_model(LETTERS), LETTERS)
    for options in (["--turns", "1"], ["--requests", "640"]):
        monkeypatch.setattr(sys, "argv", ["serve.py", "--model", str(tmp_path / "model"), *options])
        bench.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^tinylm, rows (\d+) +(\d) +[\d.]+ +[1-9]\d*( +\d+\.\d\d){4}$", printed, re.MULTILINE)
    assert [row[:2] for row in rows] == [("64", "1"), ("1", "1"), ("64", "3"), ("1", "3")]
    assert len(re.findall(r"^[13] clients: [\d.]+ times the tokens/s of tinylm, rows 1$", printed, re.MULTILINE)) == 2
    assert re.findall(r"after +(\d+) requests: \d+\.\d MB", printed) == [str(64 * n) for n in range(1, 11)]
