import csv

import pytest

from tests.shortcuts import drawn_curves
from tinylm.errors import ConfigError, MissingInputError
from tinylm.locate import command
from tinylm.runs.folder import RUN_FOLDER, RunConfig, existing_run_folder, new_run_folder
from tinylm.runs.metrics import read_metrics
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
        {"step": "2", "train/loss": "2", "val/loss": "1.75"},
        {"step": "3", "train/loss": "1.5", "val/loss": ""},
    ]


def test_metrics_csv_has_one_row_per_step_in_order_whatever_the_order_of_calls(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"a": 1, "b": 1, "c": 1}, step=2)
    for name, step, value in (("a", 4, 3), ("b", 4, 100), ("b", 4, 5), ("a", 1, 7), ("c", 4, 6), ("a", 3, 8)):
        log.log_metrics({name: value}, step=step)
    expected = {"1": ("7", "", ""), "2": ("1", "1", "1"), "3": ("8", "", ""), "4": ("3", "5", "6")}
    assert {row.pop("step"): tuple(row.values()) for row in rows(log.path)} == expected
    MetricsCSV(tmp_path).log_metrics({"c": 9}, step=4)
    log.path.write_text(log.path.read_text().replace("3,5,9", "3,50,9"))  # by the user, while the run is going on
    log.log_metrics({"c": 10}, step=4)
    assert rows(log.path)[-1] == {"step": "4", "a": "3", "b": "50", "c": "10"}


def test_a_validation_to_be_repeated_leaves_the_training_metrics_of_its_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n4,2,\n4,,3\n8,1,\n8,,2.5\n9,1,\n")  # older form
    MetricsCSV(tmp_path).truncate(8, validating=True)
    assert [tuple(row.values()) for row in rows(tmp_path / "metrics.csv")] == [("4", "2", "3"), ("8", "1", "")]


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
    drawn_curves(log.path, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
