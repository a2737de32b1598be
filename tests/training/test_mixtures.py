"""A run on a mixture, as a user sees it: shares, epochs and losses of each source; and what a resumed run notices."""

import math

import pytest
import yaml

from tinylm.data.batches import TrainingWindows
from tinylm.runs.metrics import read_metrics


@pytest.fixture
def mixed(tiny_yaml, corpus, tmp_path):
    """A config of a mixture of a copy of the text and of stories."""
    config = yaml.safe_load(tiny_yaml.read_text())
    (tmp_path / "fox.txt").write_text(corpus.read_text())
    config["data"] |= dict(corpus={"fox": "fox.txt", "tales": "stories:60"}, weights={"fox": 3, "tales": 1})
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "mixed.yaml"


def printed(text: str, name: str) -> list[float]:
    """The numbers of a metric in the output of `validate`."""
    return [float(line.split()[1]) for line in text.splitlines() if line.split()[0] == name]


def test_a_run_prints_and_logs_the_loss_of_each_source(cli, mixed):
    result = cli("fit", "-c", mixed)
    assert result.code == 0, result.err
    assert "text: fox + tales, char tokenizer" in result.err
    assert "12 steps of 8 x 32 tokens (fox 75.0%: 0.5 epochs, tales 25.0%: 0.04 epochs)" in result.err
    columns = read_metrics("runs/mixed/metrics.csv")
    last = {name: values[-1] for name, (_, values) in columns.items()}
    assert columns["val/loss_fox"][0] == columns["val/loss_tales"][0] == columns["val/loss"][0]
    assert f"validation loss {last['val/loss']:.4f} (fox {last['val/loss_fox']:.4f}, tales " in result.err
    evaluated = cli("validate", "-c", "runs/mixed/config.yaml")
    assert evaluated.code == 0, evaluated.err
    for name in ("val/loss", "val/loss_fox", "val/loss_tales"):
        assert printed(evaluated.out, name) == [pytest.approx(last[name], abs=1e-5)]
    tested = cli("test", "-c", "runs/mixed/config.yaml")
    assert math.isfinite(printed(tested.out, "test/loss_tales")[0])


def test_a_limited_validation_ends_with_all_tokens_of_each_source(cli, mixed):
    result = cli("fit", "-c", mixed, "--data.max_val_tokens", "400")
    whole = next(line for line in result.err.splitlines() if "validation tokens: " in line)
    assert "(fox " in whole and ", tales " in whole
    evaluated = cli("validate", "-c", "runs/mixed/config.yaml")
    for name in ("fox", "tales"):
        assert f"{name} {printed(evaluated.out, f'val/loss_{name}')[0]:.4f}" in whole


def test_the_loss_of_a_source_can_be_monitored(cli, mixed, tmp_path):
    callback = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/loss_NAME}}"
    text = "trainer: {callbacks+: [CALLBACK]}".replace("CALLBACK", callback)
    (tmp_path / "good.yaml").write_text(text.replace("NAME", "fox"))
    (tmp_path / "bad.yaml").write_text(text.replace("NAME", "dog"))
    assert cli("fit", "-c", mixed, "-c", tmp_path / "good.yaml").code == 0
    result = cli("fit", "-c", mixed, "-c", tmp_path / "bad.yaml")
    assert result.code == 2 and result.error.endswith("val/accuracy, val/loss_fox, val/loss_tales")


def test_a_resumed_run_names_the_source_that_has_changed(cli, mixed, tmp_path):
    assert cli("fit", "-c", mixed, "--trainer.max_steps", "4").code == 0
    text = (tmp_path / "fox.txt").read_text()
    (tmp_path / "fox.txt").write_text(text[:-100] + text[-100:][::-1])
    result = cli("fit", "-c", mixed, "--resume")
    assert result.code == 2
    assert result.error.startswith("data: fox is not the text that the checkpoint was trained on; restore it")
    (tmp_path / "fox.txt").write_text(text)
    result = cli("fit", "-c", mixed, "--resume")
    assert result.code == 0 and "is not the text" not in result.err


def test_a_resumed_run_reports_other_weights_and_goes_on(cli, mixed):
    assert cli("fit", "-c", mixed, "--trainer.max_steps", "4").code == 0
    result = cli("fit", "-c", mixed, "--data.weights.fox", "1", "--resume")
    assert result.code == 0 and "data.weights" in result.err


@pytest.mark.parametrize(("before", "lines"), [(1, 1), (2, 0)])
def test_a_resumed_run_says_that_the_order_of_windows_has_changed(cli, tiny_yaml, monkeypatch, before, lines):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingWindows, "version", before)
        assert cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "4").code == 0
    result = cli("fit", "-c", tiny_yaml, "--resume")
    assert result.code == 0
    assert result.err.count("the order of training windows has changed since this run began") == lines
