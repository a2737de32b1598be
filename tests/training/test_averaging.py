"""Averages of weights while training: Lightning's EMAWeightAveraging, in checkpoints, on resume and in the model."""

import csv

import pytest
import torch

import tinylm
from tinylm.adapt.average import average, last_checkpoints
from tinylm.bundle import network_weights, read_checkpoint

EMA = """
trainer:
  callbacks+:
    - {class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.75}}
"""
CONSTANT = ("--model.schedule.name", "constant", "--model.network.dropout", "0")


@pytest.fixture(scope="module")
def ema(tmp_path_factory):
    path = tmp_path_factory.mktemp("ema") / "ema.yaml"
    path.write_text(EMA)
    return path


def losses(folder) -> dict[str, str]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if row["train/loss"]}


@pytest.mark.filterwarnings("ignore:Be aware that when using")  # Lightning misses the callback, too
def test_a_stopped_run_with_ema_goes_on_to_the_bit_and_its_model_is_the_average(cli, tiny_yaml, ema, tmp_path):
    common = ["fit", "-c", tiny_yaml, "-c", ema, *CONSTANT, "--trainer.val_check_interval", "3"]
    assert cli(*common, "--run.name", "whole", "--trainer.max_steps", "6").code == 0
    assert cli(*common, "--run.name", "half", "--trainer.max_steps", "3").code == 0
    assert cli(*common, "--run.name", "half", "--trainer.max_steps", "6", "--resume").code == 0
    runs = tmp_path / "runs"
    assert losses(runs / "half") == losses(runs / "whole")
    whole, half = (read_checkpoint(runs / name / "checkpoints" / "last.ckpt") for name in ("whole", "half"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(half[key][name], tensor) for name, tensor in whole[key].items())
    assert not torch.equal(whole["state_dict"]["net.head.weight"], whole["current_model_state"]["net.head.weight"])
    model, _ = tinylm.load(runs / "half")
    best = network_weights(read_checkpoint(runs / "half" / "checkpoints" / "best.ckpt"))
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    resumed = cli("fit", "-c", tiny_yaml, *CONSTANT, "--run.name", "half", "--trainer.max_steps", "7", "--resume")
    assert resumed.code == 0 and "continues from averaged weights" in resumed.err


def test_the_average_in_a_checkpoint_is_the_recurrence(cli, tiny_yaml, ema, tmp_path):
    """average <- 0.75 average + 0.25 weights after every step; the first average is the weights of step 1."""
    found = []
    for steps in (1, 2, 3):
        name = f"to{steps}"
        words = ["--trainer.max_steps", steps, "--trainer.limit_val_batches", "0", "--run.name", name, *CONSTANT]
        assert cli("fit", "-c", tiny_yaml, "-c", ema, *words).code == 0
        found.append(read_checkpoint(tmp_path / "runs" / name / "checkpoints" / "last.ckpt"))
    weights = [each["current_model_state"]["net.head.weight"].double() for each in found]
    average = weights[0]
    for weight, each in zip(weights[1:], found[1:], strict=True):
        average = 0.75 * average + 0.25 * weight
        torch.testing.assert_close(each["state_dict"]["net.head.weight"].double(), average, atol=1e-7, rtol=0)


def test_averages_that_would_be_lost_are_refused(cli, tiny_yaml, ema):
    result = cli("fit", "-c", tiny_yaml, "-c", ema, "-c", "fsdp", "--trainer.devices", "1")
    assert result.code == 2 and "EMAWeightAveraging cannot average sharded weights" in result.error


def test_the_last_checkpoints_of_a_run_are_averaged_by_step(cli, tiny_yaml, tmp_path):
    (tmp_path / "keep.yaml").write_text(
        "trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint,"
        " init_args: {every_n_train_steps: 1, save_top_k: -1, filename: 'at-{step}'}}]}"
    )
    words = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "0", *CONSTANT]
    assert cli("fit", "-c", tiny_yaml, "-c", "keep.yaml", *words).code == 0
    run = next((tmp_path / "runs").iterdir())
    paths = last_checkpoints(run, 2)
    assert [path.name for path in paths] == ["at-step=2.ckpt", "at-step=3.ckpt"]
    two, three = (network_weights(read_checkpoint(path))["head.weight"].double() for path in paths)
    found = average(paths).model.head.weight
    torch.testing.assert_close(found, ((two + three) / 2).float(), atol=1e-9, rtol=0)
