"""Runs on token ids as a user sees them: of other programs, and of shards that are still being written."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from tests import processes
from tests.token_folders import publish, write_folder
from tinylm.commands import prepare_shards
from tinylm.runs.metrics import read_metrics

LENGTHS = [3000, 2000, 2500]


@pytest.fixture
def ids_yaml(tiny_yaml, tmp_path):
    """The config of the tiny run, but for the corpus."""
    config = yaml.safe_load(tiny_yaml.read_text())
    del config["data"]["corpus"], config["data"]["split"]
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "mini.yaml"


@pytest.mark.parametrize(
    "form",
    [pytest.param(each, marks=[] if n == 0 else [pytest.mark.slow]) for n, each in enumerate(prepare_shards.FORMATS)],
)
def test_a_run_on_token_ids_is_the_run_on_their_text(form, cli, corpus, ids_yaml, finished_run, tmp_path):
    split = ["--split", "0.8,0.1,0.1", "--cache-dir", str(tmp_path / "cache")]
    prepare_shards.write_shards([str(corpus), "--to", form, "--tokenizer", "char", "--out", "ids", *split])
    result = cli("fit", "-c", ids_yaml, "--data.corpus", "ids")
    assert result.code == 0, result.err
    expected, found = read_metrics(finished_run / "metrics.csv"), read_metrics("runs/mini/metrics.csv")
    for name in ("train/loss", "val/loss"):
        assert found[name] == expected[name]
    evaluated = cli("validate", "-c", "runs/mini/config.yaml")
    assert f"{found['val/loss'][1][-1]:.4f}" in evaluated.out.replace("\n", " ")
    assert cli("test", "-c", "runs/mini/config.yaml").code == 0
    assert cli("fit", "-c", ids_yaml, "--data.corpus", "ids", "--trainer.max_steps", "14", "--resume").code == 0


def wait_for(text: str, log: Path) -> None:
    for _ in range(600):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{text} does not appear: {log.read_text() if log.exists() else ''}")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_a_run_stopped_while_it_waits_for_a_shard_ends_as_one_that_had_all(ids_yaml, tmp_path):
    whole = write_folder(tmp_path / "whole", LENGTHS)

    def run(name: str, folder: str, *more: str):
        options = ["--data.corpus", folder, "--data.streaming", "true", "--run.name", name, *more]
        arguments = ["fit", "-c", str(ids_yaml), *options, "--trainer.max_steps", "40"]
        return processes.start(processes.command_line, arguments, tmp_path, tmp_path / f"{name}.log")

    publish(whole, tmp_path / "whole", tmp_path / "part", 1)
    stopped = run("stopped", "part")
    wait_for("waiting for train 1", tmp_path / "stopped.log")
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGTERM)
    stopped.join(60)
    assert stopped.exitcode == 75
    assert "which is saved, waiting for a shard; to resume: " in (tmp_path / "stopped.log").read_text()
    resumed = run("stopped", "part", "--resume")
    for groups in (2, 3):
        time.sleep(1)
        publish(whole, tmp_path / "whole", tmp_path / "part", groups)
    resumed.join(120)
    straight = run("straight", "whole")
    straight.join(120)
    assert (resumed.exitcode, straight.exitcode) == (0, 0)
    found, expected = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("stopped", "straight")
    )
    assert all((found[name] == expected[name]).all() for name in expected)
    losses = [read_metrics(tmp_path / "runs" / name / "metrics.csv")["train/loss"] for name in ("stopped", "straight")]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_two_processes_train_on_shards_as_one_does(ids_yaml, tmp_path):
    write_folder(tmp_path / "whole", LENGTHS)
    options = ["--data.corpus", "whole", "--data.streaming", "true", "--trainer.max_steps", "20"]
    options += ["--model.network.dropout", "0.0"]
    for name, more in (("one", []), ("two", ["-c", "ddp", "--trainer.devices", "2"])):
        arguments = ["fit", "-c", str(ids_yaml), *more, *options, "--run.name", name]
        process = processes.start(processes.command_line, arguments, tmp_path, tmp_path / f"{name}.log")
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"{name}.log").read_text()
    losses = [read_metrics(tmp_path / "runs" / name / "metrics.csv")["train/loss"][1] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
