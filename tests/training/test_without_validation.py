"""Runs without a validation, by `data.split: [1.0]` or `trainer.limit_val_batches: 0`; the last model is kept."""

import csv
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import tinylm
from tests import processes
from tests.training import ranks
from tinylm.bundle import read_checkpoint
from tinylm.commands import run_command
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.locate import MANIFEST
from tinylm.model import ModelConfig
from tinylm.training import LitTransformerLM
from tinylm.training.samples import has_samples

SPLIT = ("--data.split", "[1.0]")
LIMIT = ("--trainer.limit_val_batches", "0")
BOTH = pytest.mark.parametrize("without", [SPLIT, LIMIT], ids=["split", "limit"])


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


@BOTH
def test_the_last_checkpoint_is_the_model(cli, tiny_yaml, without):
    result, run = cli("fit", "-c", tiny_yaml, *without), Path("runs/mini")
    assert result.code == 0
    reason = "all is trained on" if without is SPLIT else "trainer.limit_val_batches is 0"
    assert result.err.count(f"tinylm: no validation ({reason}): the last checkpoint is the model\n") == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    info = json.loads((run / "model" / MANIFEST).read_text())["info"]
    assert info["step"] == 12 and not any(name.startswith("val/") for name in info)
    weights = read_checkpoint(run / "checkpoints/last.ckpt")
    assert weights["global_step"] == 12
    model, _ = tinylm.load(run)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights["state_dict"][f"net.{name}"]), name
    assert {"train/loss", "lr"} <= columns(run) and not any(name.startswith("val/") for name in columns(run))
    assert (run / "curves.png").is_file()
    assert (run / "samples.txt").read_text().count("=== step") == 1 and has_samples(run / "samples.txt", 12)
    again = cli("fit", "--resume", "-c", tiny_yaml, *without)
    assert again.code == 0 and "there is nothing left to train" in again.err
    assert (run / "samples.txt").read_text().count("=== step") == 1


@BOTH
def test_what_evaluates_nothing_is_refused_by_name(cli, tiny_yaml, corpus, without):
    assert cli("fit", "-c", tiny_yaml, *without).code == 0
    config = Path("runs/mini/config.yaml")
    refused = cli("validate", "-c", config)
    assert refused.code == 2
    if without is SPLIT:
        assert (
            refused.error
            == f"{config}: data.split has no val part: give two fractions, such as [0.9, 0.1], or data.val"
        )
        assert cli("test", "-c", config).error.startswith(
            f"{config}: data.split has no test part: give three fractions"
        )
    else:
        assert refused.error == f"{config}: trainer.limit_val_batches: is 0, which evaluates nothing; set it to 1.0"
        assert "val/loss" in cli("validate", "-c", config, "--trainer.limit_val_batches", "1.0").out
        assert "test/loss" in cli("test", "-c", config).out
        assert "limit_test_batches: is 0" in cli("test", "-c", config, "--trainer.limit_test_batches", "0").error
    assert cli("predict", "-c", config, "--data.text", corpus).code == 0


@BOTH
@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_callback_that_monitors_a_validation_is_refused_at_the_start(cli, tiny_yaml, without, name):
    own = ["--trainer.callbacks+", f"lightning.pytorch.callbacks.{name}", "--trainer.callbacks.monitor", "val/loss"]
    result = cli("fit", "-c", tiny_yaml, *own, *without)
    assert result.code == 2
    problem = f"trainer.callbacks: {name} monitors val/loss, and the run has no validation; leave it out, or validate"
    assert problem in result.error
    assert not Path("runs/mini/checkpoints").exists()


def test_a_run_resumed_without_a_validation_keeps_its_last_model_not_the_best_before(cli, tiny_yaml):
    lowest = ["--model.schedule.name", "constant"]
    assert cli("fit", "-c", tiny_yaml, *lowest, "--trainer.max_steps", "4").code == 0
    resumed = cli("fit", "--resume", "-c", tiny_yaml, *lowest, *LIMIT, "--trainer.max_steps", "9")
    assert resumed.code == 0, resumed.err
    assert Path("runs/mini/checkpoints/best.ckpt").is_file()
    last = read_checkpoint(Path("runs/mini/checkpoints/last.ckpt"))
    for name, weight in tinylm.load("runs/mini")[0].state_dict().items():
        assert torch.equal(weight, last["state_dict"][f"net.{name}"])
    tested = cli("test", "-c", "runs/mini/config.yaml")
    assert "last.ckpt" in tested.err and tested.code == 0


def test_options_of_a_validation_are_refused_without_one(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, *SPLIT, "--data.max_val_tokens", "100")
    assert result.error == (
        "data.max_val_tokens: there is no validation; leave it out, or set data.split or data.val"
    )  # fmt: skip


@BOTH
def test_the_twin_trains_without_a_validation_too(tiny_yaml, tmp_path, monkeypatch, capfd, without):
    monkeypatch.chdir(tmp_path)
    options = ["-c", str(tiny_yaml), "--model.network.dropout", "0", *without]
    assert run_command("train-numpy", options) == 0
    run = Path("runs/mini-numpy")
    assert "the last checkpoint is the model" in capfd.readouterr().err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.npz"]
    assert not any(name.startswith("val/") for name in columns(run))
    assert (run / "samples.txt").read_text().count("=== step") == 1 and has_samples(run / "samples.txt", 12)
    assert run_command("train-numpy", [*options, "--resume"]) == 0
    assert (run / "samples.txt").read_text().count("=== step") == 1
    assert tinylm.load(run)[0].num_parameters()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_a_trainer_validates_other_data_after_a_run_without(tmp_path, corpus):
    text = corpus.read_text()
    options = dict(cache_dir=str(tmp_path), max_seq_len=16, batch_size=4)
    data = TextDataModule([text], split=(1.0,), **options)
    network = ModelConfig(vocab_size=data.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=16)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    often = dict(val_check_interval=1, check_val_every_n_epoch=None)
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", **often, **quiet)
    module = LitTransformerLM(network)
    trainer.fit(module, datamodule=data)
    assert "val/loss" not in trainer.callback_metrics
    with pytest.raises(ConfigError, match=r"data\.split has no val part: give two fractions"):
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(module, datamodule=TextDataModule([text], **options))
    assert trainer.callback_metrics["val/loss"] > 0


@pytest.mark.slow
def test_two_ranks_train_on_a_short_text_as_one_does(tiny_yaml, tmp_path):
    (tmp_path / "short.txt").write_text("Two sentences. No more.")
    common = ["fit", "-c", str(tiny_yaml), *SPLIT, "--data.corpus", str(tmp_path / "short.txt")]
    common += ["--model.network.dropout", "0", "--model.optimizer.name", "adamw", "--data.micro_batch_size", "2"]
    losses = {}
    for size in (1, 2):
        arguments = [*common, "--run.name", f"of{size}", *(["-c", "ddp", "--trainer.devices", "2"] if size > 1 else [])]
        found = processes.run_ranks(size, ranks.record, arguments, str(tmp_path), out=tmp_path)
        losses[size] = found[0]["losses"]
    assert len(losses[1]) == 12
    torch.testing.assert_close(torch.tensor(losses[2]), torch.tensor(losses[1]), atol=1e-5, rtol=0)
