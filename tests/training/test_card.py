"""The model card of an exported run: its figures, and a config that repeats it."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.test_finetune import losses
from tinylm.commands import run_command


@pytest.mark.parametrize("inside", ["", "model", "checkpoints/last.ckpt"])
def test_the_card_has_the_figures_of_the_run(inside, finished_run, tmp_path):
    assert (
        run_command("export", ["--model", str(finished_run / inside), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    )
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", card, re.MULTILINE))
    assert rows["steps"] == "12 of 12"
    assert rows["training tokens"] == f"{12 * 8 * 32:,}"  # steps, batch, context
    lowest = min(map(float, losses(finished_run, "val/loss")))
    assert float(rows["lowest validation loss"]) == pytest.approx(lowest, rel=1e-5)
    assert rows["data"].endswith("fox.txt") and float(rows["training seconds"]) > 0
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert config == yaml.safe_load((finished_run / "config.yaml").read_text())
    assert "base model" not in rows and "config.yaml" not in rows and "provenance" not in rows
    assert f"torch {torch.__version__}, lightning " in rows["versions"]


def test_the_config_of_the_card_repeats_the_run(finished_run, tmp_path, cli):
    assert run_command("export", ["--model", str(finished_run), "--to", "hf", "--out", "hf"]) == 0
    Path("config.yaml").write_text(re.search(r"```yaml\n(.*?)```", Path("hf/README.md").read_text(), re.DOTALL)[1])
    result = cli("fit", "-c", "config.yaml", "--run.name", "again", "--run.dir", "runs")
    assert result.code == 0, result.err
    assert losses(Path("runs/again"), "val/loss") == losses(finished_run, "val/loss")


def test_a_model_without_its_run_has_a_card_without_figures(finished_run, tmp_path):
    assert run_command("export", ["--model", str(finished_run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    back = ["--model", str(tmp_path / "hf"), "--to", "tinylm", "--out", str(tmp_path / "back")]
    assert run_command("export", back) == 0
    again = ["--model", str(tmp_path / "back"), "--to", "hf", "--out", str(tmp_path / "again")]
    assert run_command("export", again) == 0
    card = (tmp_path / "again" / "README.md").read_text()
    assert "Repeat the run" not in card and "training tokens" not in card
