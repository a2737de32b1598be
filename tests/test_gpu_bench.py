"""scripts/bench/gpu.py runs in miniature on a processor, so that it works the day a GPU is there."""

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import gpu
from tests.nanogpt_stand_in import NANOGPT

ROOT = Path(__file__).parents[1]
LINES = (
    "gpt2 nanoGPT", "gpt2 raw", "gpt2 fit", "gpt2 fit, Muon", "gpt2 raw, Muon", "gpt2 fit, eager", "small raw",
    "small fit", "shakespeare nanoGPT", "shakespeare raw", "shakespeare fit", "masks causal", "masks documents",
    "masks causal, as PyTorch chooses", "masks documents, dense mask", "muon Newton-Schulz", "muon step", "adamw step",
)  # fmt: skip


@pytest.mark.slow
def test_every_part_of_the_table_prints_a_figure(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    (tmp_path / "corpus.txt").write_text("".join(random.Random(0).choices("abcdefgh \n", k=5000)))
    command = [sys.executable, str(ROOT / "scripts/bench/gpu.py"), "--nanogpt", ".", "--corpus", "corpus.txt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
    for name in LINES:
        figure = re.search(rf"^{re.escape(name):32} +([\d.]+) ms", result.stdout, re.MULTILINE)
        assert figure is not None and 0 < float(figure[1]) < math.inf, name
    for batch in gpu.BATCHES:
        assert re.search(rf"^generation, batch {batch} +([\d.]+ ms a step|left out)", result.stdout, re.MULTILINE)
    for name in ("race fit", "race nanoGPT"):
        race = re.search(rf"^{name} +([\d.]+) s, 4 steps to a loss of ([\d.]+)", result.stdout, re.MULTILINE)
        assert race is not None and float(race[2]) == pytest.approx(math.log(10), abs=0.3), name  # of ten characters
    _, targets = result.stdout.split("\ntargets")
    assert len(targets.strip().splitlines()) == len(gpu.TARGETS) + 1 and "pass" not in targets


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(gpu, "measure_peak_flops", lambda *arguments: 1e12)
    return gpu.Table("cpu", tiny=False, seconds=60)


def test_a_part_that_fails_says_so_and_the_others_go_on(table, capsys):
    def fail():
        raise ValueError("no such kernel\nstack of it")

    capsys.readouterr()
    table.seconds("first", fail)
    table.seconds("second", lambda: 0.25)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["first", "FAILED", "ValueError:", "no", "such", "kernel"]
    assert second.split() == ["second", "250.000", "ms"]
    assert table.failed and table.found == {"second": 250.0}


def test_a_part_is_left_out_when_the_time_is_up(table, capsys):
    table.end = 0.0
    table.seconds("late", lambda: 0.25)
    assert "left out: the time is up" in capsys.readouterr().out
    assert not table.failed and table.found == {}


def test_targets_are_compared_by_their_direction(table, capsys):
    table.found = {"gpt2 nanoGPT": 30.0, "gpt2 fit": 25.0, "gpt2 fit, GiB": 9.5, "small fit": 2.0, "generation 16": 9.0}
    capsys.readouterr()
    table.targets()
    lines = capsys.readouterr().out.splitlines()

    def line(words):
        return next(line for line in lines if words in line).split(words)[1].split()

    assert line("AdamW: x nanoGPT") == ["1.20", ">=", "1.00", "pass"]
    assert line("peak memory, GiB") == ["9.50", "<=", "9.00", "MISSED"]
    assert line("`small` by fit, ms a step")[-1] == "pass"
    assert line("batch 16, tokens/s")[-1] == "MISSED"
    assert line("Shakespeare, 10.7M, by fit, ms a step") == ["not", "measured"]
