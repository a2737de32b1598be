import csv

import pytest

from tinylm.errors import ConfigError, MissingInputError
from tinylm.locate import command
from tinylm.runs.folder import RUN_FOLDER, RunConfig, existing_run_folder, new_run_folder
from tinylm.runs.metrics import read_metrics
from tinylm.runs.plots import draw_curves
from tinylm.training.metrics_csv import MetricsCSV


@pytest.fixture(autouse=True)
def _no_folder_from_elsewhere(monkeypatch):
    monkeypatch.setenv(RUN_FOLDER, "x")  # so that whatever a test sets is taken back
    monkeypatch.delenv(RUN_FOLDER)


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_keeps_every_value_when_columns_are_added(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"train/loss": 2.5}, step=1)
    log.log_metrics({"train/loss": 2.0, "epoch": 0}, step=2)
    log.log_metrics({"val/loss": 1.75}, step=2)
    log.log_metrics({"train/loss": 1.5}, step=3)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "2.5", "val/loss": ""},
        {"step": "2", "train/loss": "2", "val/loss": ""},
        {"step": "2", "train/loss": "", "val/loss": "1.75"},
        {"step": "3", "train/loss": "1.5", "val/loss": ""},
    ]


def test_metrics_csv_goes_on_where_a_resumed_run_begins(tmp_path):
    log = MetricsCSV(tmp_path)
    for step in range(1, 6):
        log.log_metrics({"train/loss": float(step)}, step=step)
    with log.path.open("a") as file:
        file.write("6")  # cut short by a kill
    again = MetricsCSV(tmp_path)
    again.truncate(3)
    again.log_metrics({"train/loss": 40.0}, step=4)
    assert [(row["step"], row["train/loss"]) for row in rows(log.path)] == [
        ("1", "1"),
        ("2", "2"),
        ("3", "3"),
        ("4", "40"),
    ]


def test_run_names_count_up_and_tell_how_to_go_on(tmp_path, capfd, monkeypatch):
    config = RunConfig(dir=str(tmp_path))
    assert new_run_folder(config, "small")[0] == tmp_path / "small"
    (tmp_path / "small/config.yaml").touch()
    monkeypatch.delenv(RUN_FOLDER)
    assert new_run_folder(config, "small")[0] == tmp_path / "small-2"
    resume = command("fit", "--resume", tmp_path / "small")
    assert f"small exists (unfinished; to resume it: {resume})" in capfd.readouterr().err
    # a process that rank 0 starts gets the same folder, and does not claim it
    assert new_run_folder(config, "small") == (tmp_path / "small-2", None)


def test_unknown_run_names_the_ones_there_are(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.yaml").touch()
    with pytest.raises(MissingInputError, match=r"no such run; .* has small"):
        existing_run_folder(RunConfig(dir=str(tmp_path), name="smal"), "x")


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_run_name_must_be_a_plain_name(name):
    with pytest.raises(ConfigError, match=r"run\.name must be a plain folder name"):
        RunConfig(name=name)


def test_curves_are_drawn_from_sparse_columns(tmp_path):
    log = MetricsCSV(tmp_path)
    for step in range(1, 4):
        log.log_metrics({"train/loss": 3.0 / step, "lr": 0.1, "train/grad_norm": 1.0}, step=step)
    log.log_metrics({"val/loss": 1.25}, step=3)
    assert read_metrics(log.path)["val/loss"] == ([3], [1.25])
    draw_curves(log.path, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
