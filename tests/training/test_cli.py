# ruff: noqa: E501 (messages in tables are whole)
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import tinylm
from tests import processes
from tinylm.locate import command, find_config
from tinylm.runs.metrics import read_metrics
from tinylm.training.options import plain_error

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/examples").glob("*.yaml")])


def test_a_run_leaves_what_the_design_says(finished_run):
    found = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("tinylm.json", "model.safetensors", "tokenizer.tinylm.json")}
    checkpoints = {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    files = {"config.yaml", "run.json", "metrics.csv", "samples.txt", "curves.png", ".lock"}
    assert found - {"run.diff"} == files | model | checkpoints


def test_metrics_have_every_step_and_every_validation(finished_run):
    columns = read_metrics(finished_run / "metrics.csv")
    for name in ("train/loss", "train/grad_norm", "lr", "perf/tokens_per_sec", "perf/step_seconds", "perf/mfu"):
        assert columns[name][0] == list(range(1, 13))
    for name in ("val/loss", "val/perplexity", "val/bpb", "val/accuracy"):
        assert columns[name][0] == [4, 8, 12]
    losses = columns["val/loss"][1]
    assert losses[2] < losses[0] < math.log(40)
    for loss, perplexity in zip(losses, columns["val/perplexity"][1], strict=True):
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    mfu, rate = columns["perf/mfu"][1][0], columns["perf/tokens_per_sec"][1][0]
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    tokens = config["data"]["batch_size"] * config["model"]["network"]["max_seq_len"]  # in several micro-batches
    assert rate * columns["perf/step_seconds"][1][0] == pytest.approx(tokens, rel=1e-6)
    model, _ = tinylm.load(finished_run)
    flops = 6 * sum(parameter.numel() for parameter in model.parameters()) + 12 * 2 * 32 * 32
    assert mfu == pytest.approx(rate * flops / 1e12, rel=1e-6)


def test_load_gives_bit_identical_logits_from_run_model_folder_and_checkpoint(finished_run, tmp_path, capfd):
    """The validation loss fell to the end, so the best checkpoint is the last one too."""
    shutil.copytree(finished_run / "model", tmp_path / "elsewhere")
    paths = [finished_run, finished_run / "model", finished_run / "checkpoints/best.ckpt", tmp_path / "elsewhere"]
    paths += [finished_run / "checkpoints/last.ckpt"]
    ids = torch.arange(20).remainder(9)[None]
    with torch.no_grad():
        logits = [tinylm.load(path)[0](ids) for path in paths]
    assert all(torch.equal(logits[0], other) for other in logits[1:])
    assert f"loading {finished_run / 'model'}" in capfd.readouterr().err


def test_plain_trainer_checkpoint_loads_too(corpus, tmp_path):
    """Ten lines of Python, with Lightning's own checkpoint callback and file format."""
    import lightning.pytorch as pl

    from tinylm.data import TextDataModule
    from tinylm.model import ModelConfig
    from tinylm.training import LitTransformerLM

    data = TextDataModule(str(corpus), max_seq_len=16, batch_size=4, cache_dir=str(tmp_path))
    module = LitTransformerLM(
        ModelConfig(vocab_size=data.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=16)
    )
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=1, num_sanity_val_steps=0, default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    model, tokenizer = tinylm.load(tmp_path / "plain.ckpt")
    ids = torch.tensor([tokenizer.encode("the quick")])
    with torch.no_grad():  # with gradients the trained module uses its tuned norm
        assert torch.equal(model(ids), module.net.eval()(ids))


def test_runs_from_any_folder_with_overlays_and_flags(cli, tiny_yaml, tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 5, val_check_interval: 5}\n")
    (tmp_path / "b.yaml").write_text("trainer: {max_steps: 2, val_check_interval: 2}\n")
    result = cli("fit", "-c", tiny_yaml, "-c", "a.yaml", "--config", "b", "--model.network.num_layers", "3")
    assert result.code == 0, result.err
    config = yaml.safe_load((tmp_path / "runs/mini/config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 2
    model, _ = tinylm.load(tmp_path / "runs/mini")
    assert len(model.blocks) == 3
    again = cli("fit", "-c", "runs/mini/config.yaml", "--run.name", "again")  # a run's config runs again, and the same
    assert again.code == 0, again.err
    first, second = (read_metrics(tmp_path / "runs" / name / "metrics.csv") for name in ("mini", "again"))
    assert first["train/loss"] == second["train/loss"]


def test_print_config_is_the_whole_config(cli, tiny_yaml, capfd):
    with pytest.raises(SystemExit) as leaving:
        cli("fit", "-c", str(tiny_yaml), "--print_config")
    assert leaving.value.code in (0, None)
    Path("printed.yaml").write_text(text := capfd.readouterr().out)
    printed = yaml.safe_load(text)
    assert printed["model"]["network"]["num_kv_heads"] == 1
    assert {"model", "data", "run", "trainer"} <= printed.keys()
    again = cli("fit", "-c", "printed.yaml", "--trainer.max_steps", "1")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model.network.n_head", "4"], 2, "model.network.n_head: no such option, did you mean 'model.network.num_heads'?"),
        (["--model.network.num_layer", "4"], 2, "model.network.num_layer: no such option, did you mean 'model.network.num_layers'?"),
        (["--data.block_size", "4"], 2, "data.block_size: no such option, did you mean 'model.network.max_seq_len'?"),
        (["--model.network.num_layers", "abc"], 2, "model.network.num_layers must be int, got abc"),
        (["--model.network.num_layers=-1"], 2, "num_layers must be at least 1, got -1"),
        (["--model.network.activation", "swish"], 2, "model.network.activation must be one of swiglu, gelu, gelu_tanh, relu, relu2, got swish"),
        (["--model.network.d_model", "100", "--model.network.num_heads", "3"], 2, "d_model must be divisible by num_heads, got d_model=100 and num_heads=3"),
        (["--trainer.max_steps", "1e5"], 2, "trainer.max_steps must be int, got 100000.0"),
        (["--data.corpus", "nosuch.txt"], 66, "data.corpus: nosuch.txt: no such corpus or file; give a text file, a glob, a URL, or one of stories, names, tinyshakespeare, tinystories"),
        (["--data.split", "[0.5, 0.2]"], 2, "data.split must be one to three positive fractions that sum to 1, got [0.5, 0.2]"),
        (["--data.tokenizer", "chars"], 2, "tokenizer: no kind 'chars', did you mean 'char'?"),
        (["--run.name", "a/b"], 2, "run.name must be a plain folder name, got 'a/b'; set the parent with run.dir"),
        (["--trainer.max_steps", "-1"], 2, "trainer.max_steps: missing; set it or trainer.max_epochs: the schedule needs the length of the run (run.seconds adjusts max_steps to a time)"),
        (["-c", "nosuch"], 66, None),
        (["-c", "tiney"], 66, "tiney: no such config file, did you mean 'tiny'?"),
        (["--data.train_tokens", "1"], 65, "data.train_tokens: train has 1 tokens, needs at least 2; raise it"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_an_exit_code_and_leave_nothing(cli, tiny_yaml, tmp_path, arguments, code, message):
    result = cli("fit", "-c", tiny_yaml, *arguments)
    assert result.code == code
    assert message is None or result.error == message
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  network: {n_layer: 2}\n", "mine.yaml: model.network.n_layer: no such option, did you mean 'model.network.num_layers'?"),
        ("trainer: {max_stepz: 3}\n", "mine.yaml: trainer.max_stepz: no such option, did you mean 'trainer.max_steps'?"),
        ("data: {batch_size: many}\n", "mine.yaml: data.batch_size must be int, got many"),
        ("trainer: {max_steps: [\n", None),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_name_the_file(cli, tiny_yaml, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    result = cli("fit", "-c", tiny_yaml, "-c", "mine.yaml")
    assert result.code == 2
    assert result.error.startswith("mine.yaml: ")
    assert message is None or result.error == message


def test_unknown_command_is_one_line(cli):
    result = cli("fti")
    assert (result.code, result.error) == (
        2,
        "fti: no such command, did you mean 'fit'? (fit, validate, test, predict)",
    )


def test_unknown_wordings_of_the_parser_pass_through():
    assert plain_error("something new", {}) == "something new"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_its_model_is_the_preset(cli, path, capfd):
    from tinylm.model import PRESETS

    with pytest.raises(SystemExit):
        cli("fit", "-c", path.stem, "--print_config")
    network = yaml.safe_load(capfd.readouterr().out)["model"]["network"]
    for name, value in PRESETS.get(path.stem, {}).items():
        assert network[name] == value
    first_line, *_ = path.read_text().splitlines()
    assert first_line.startswith("# ")
    assert find_config(path.name) == find_config(path.stem) == path


def test_names_count_up_and_the_unfinished_run_is_pointed_at(cli, tiny_yaml, tmp_path):
    (tmp_path / "runs/mini").mkdir(parents=True)
    result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "1")
    assert f"runs{os.sep}mini exists; this run is runs{os.sep}mini-2" in result.err
    shutil.rmtree(tmp_path / "runs/mini-2/model")
    result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "1")
    resume = command("fit", "--resume", Path("runs/mini-2"))
    assert f"runs{os.sep}mini-2 exists (unfinished; to resume it: {resume}); this run is" in result.err
    assert (tmp_path / "runs/mini-3/model").is_dir()


def test_validate_test_and_predict_work_on_the_best_checkpoint(cli, tiny_yaml, finished_run, corpus, tmp_path):
    run = ["-c", str(tiny_yaml), "--run.dir", str(finished_run.parent)]
    result = cli("validate", *run)
    assert result.code == 0, result.err
    printed = {line.split()[0]: float(line.split()[1]) for line in result.out.splitlines()}
    logged = read_metrics(finished_run / "metrics.csv")["val/loss"][1]
    assert printed["val/loss"] == pytest.approx(min(logged), abs=1e-5)
    result = cli("test", *run)
    assert "test/loss" in result.out, result.err

    (tmp_path / "text.txt").write_text(corpus.read_text()[:100])
    result = cli("predict", *run, "--data.text", "text.txt", "--run.output", "out.jsonl")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model, tokenizer = tinylm.load(finished_run)
    ids = torch.tensor(tokenizer.encode(corpus.read_text()[:100]))
    assert [row["id"] for row in rows] == ids[1:].tolist()
    assert "".join(row["token"] for row in rows) == corpus.read_text()[1:100]
    expected = torch.log_softmax(model(ids[None, :32])[0], -1)[range(32), ids[1:33]]
    assert [row["log_prob"] for row in rows[:32]] == pytest.approx(expected.tolist(), abs=2e-5)


def test_a_checkpoint_can_be_validated_without_its_run(cli, tiny_yaml, finished_run, tmp_path):
    shutil.copy(finished_run / "checkpoints/best.ckpt", tmp_path / "some.ckpt")
    result = cli("validate", "-c", tiny_yaml, "--ckpt_path", "some.ckpt")
    assert result.code == 0, result.err
    printed = {line.split()[0]: float(line.split()[1]) for line in result.out.splitlines()}
    logged = read_metrics(finished_run / "metrics.csv")["val/loss"][1]
    assert printed["val/loss"] == pytest.approx(min(logged), abs=1e-5)


def test_commands_that_need_a_run_say_which_there_are(cli, tiny_yaml, finished_run):
    result = cli("validate", "-c", tiny_yaml, "--run.dir", finished_run.parent, "--run.name", "mina")
    assert result.code == 66
    assert "has mini" in result.error
    result = cli("predict", "-c", tiny_yaml, "--run.dir", finished_run.parent)
    assert (result.code, result.error) == (2, "data.text: missing; set the text file, --data.text FILE")


def test_tensorboard_by_one_flag(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, "-c", "overlays/tensorboard.yaml", "--trainer.max_steps", "1")
    assert result.code == 0, result.err
    assert list((tmp_path / "runs/mini/tensorboard").glob("events.*"))
    assert (tmp_path / "runs/mini/metrics.csv").is_file()


def test_overfit_learns_its_tokens_by_heart(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, "-c", "overfit", "--data.train_tokens", "129", "--trainer.max_steps", "120")
    assert result.code == 0, result.err
    losses = columns(tmp_path / "runs/mini")["train/loss"][1]
    assert losses[-1] < 0.1 < losses[0]
    assert "129 to train on" in result.err


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_training_has_the_losses_and_weights_of_eager_training(tiny_yaml, tmp_path):
    losses, names = {}, {}
    for name, overlays in {"eager": [], "compiled": ["-c", "compile"]}.items():
        arguments = ["fit", "-c", str(tiny_yaml), *overlays, "--run.name", name, "--trainer.max_steps", "3"]
        arguments += ["--model.network.dropout", "0", "--model.network.num_layers", "1"]
        arguments += ["--trainer.val_check_interval", "3"]
        process = processes.start(processes.command_line, arguments, tmp_path, tmp_path / f"{name}.txt")
        process.join(300)
        assert process.exitcode == 0, (tmp_path / f"{name}.txt").read_text()
        losses[name] = columns(tmp_path / "runs" / name)["train/loss"][1]
        names[name] = set(torch.load(tmp_path / "runs" / name / "checkpoints/last.ckpt")["state_dict"])
    assert losses["compiled"] == pytest.approx(losses["eager"], abs=1e-4)
    assert names["compiled"] == names["eager"]


def test_profile_leaves_a_table_and_a_trace(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, "-c", "profile")
    assert result.code == 0, result.err
    assert "aten::mm" in (tmp_path / "runs/mini/profile.txt").read_text()
    events = json.loads((tmp_path / "runs/mini/profile.trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event.get("name") == "Optimizer.step#Muon.step" and event.get("ph") == "X"]
    assert len(steps) == 5
    assert "{run}" in (tmp_path / "runs/mini/config.yaml").read_text()  # and not this folder, for a run of this config


# --- stopping and going on


def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(cli, tiny_yaml, finished_run, tmp_path):
    """Dropout, accumulation and validation inside; stopped at step 7, its newest checkpoint being of step 6."""
    stop = (
        "import lightning.pytorch as pl\n\nclass Stop(pl.Callback):\n    def on_train_batch_end(self, trainer, *_):\n"
    )
    stop += "        if trainer.global_step == 7:\n            raise RuntimeError('pulled the plug')\n"
    (tmp_path / "stopper.py").write_text(stop)
    sys.path.insert(0, str(tmp_path))
    try:
        stopped = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+=stopper.Stop")
    finally:
        sys.path.remove(str(tmp_path))
    assert (stopped.code, stopped.error) == (70, "RuntimeError: pulled the plug; --debug shows where")
    resumed = cli("fit", "-c", tiny_yaml, "--resume")
    assert resumed.code == 0, resumed.err
    assert "from step 6 (last.ckpt)" in resumed.err
    ours, whole = (read_metrics(folder / "metrics.csv") for folder in (tmp_path / "runs/mini", finished_run))
    for name in ("train/loss", "train/grad_norm", "lr", "val/loss", "val/accuracy"):
        assert ours[name] == whole[name], name
    one, other = (torch.load(f / "checkpoints/last.ckpt") for f in (tmp_path / "runs/mini", finished_run))
    torch.testing.assert_close(one["state_dict"], other["state_dict"], atol=0, rtol=0)
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    torch.testing.assert_close(*states, atol=0, rtol=0)


def test_resume_falls_back_to_the_checkpoint_before_a_damaged_one(cli, tiny_yaml, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "runs/mini")
    last = tmp_path / "runs/mini/checkpoints/last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    result = cli("fit", "-c", tiny_yaml, "--resume", "--trainer.max_steps", "13")
    assert result.code == 0, result.err
    assert "warning:" in result.err and "is damaged" in result.err and "best.ckpt (step 12)" in result.err
    result = cli("validate", "-c", tiny_yaml, "--ckpt_path", last.with_name("nosuch.ckpt"))
    assert result.code == 66


@pytest.fixture
def half_run(cli, tiny_yaml, tmp_path):
    """A run of twelve steps, stopped after six, without dropout; returns the options to resume it."""
    arguments = ["fit", "-c", tiny_yaml, "--model.network.dropout", "0"]
    result = cli(*arguments, "--trainer.max_steps", "6", "--model.schedule.name", "constant")
    assert result.code == 0, result.err
    return [*arguments, "--resume"]


def columns(folder: Path) -> dict:
    return read_metrics(folder / "metrics.csv")


def test_todays_learning_rate_and_decay_are_honoured_and_told(cli, half_run, tmp_path):
    result = cli(*half_run, "--model.schedule.name", "constant", "--model.optimizer.lr", "0.004",
                 "--model.optimizer.weight_decay", "0.5", "--model.optimizer.momentum", "0.8")  # fmt: skip
    assert result.code == 0, result.err
    [line] = [line for line in result.err.splitlines() if "changed since the checkpoint" in line]
    changes = ["model.optimizer.lr 0.01 -> 0.004", "model.optimizer.weight_decay 0.1 -> 0.5"]
    changes += ["model.optimizer.momentum 0.95 -> 0.8", "trainer.max_steps 6 -> 12"]
    assert sorted(line.removeprefix("tinylm: changed since the checkpoint: ").split("; ")) == sorted(changes)
    steps, rates = columns(tmp_path / "runs/mini")["lr"]
    assert steps == list(range(1, 13))
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3] + [0.01] * 4 + [0.004] * 6)  # two steps of warmup
    groups = torch.load(tmp_path / "runs/mini/checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {group["momentum"] for group in groups} == {0.8}


def test_nothing_is_told_where_nothing_changed(cli, half_run):
    result = cli(*half_run, "--trainer.max_steps", "6", "--model.schedule.name", "constant")
    assert result.code == 0, result.err
    assert "changed since" not in result.err


def test_another_kind_of_optimizer_is_refused(cli, half_run):
    result = cli(*half_run, "--model.optimizer.name", "adamw")
    assert (result.code, result.error) == (2, "optimizer.name: checkpoint muon, config adamw")


@pytest.mark.parametrize("micro_batch_size", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_a_run_goes_on_with_other_micro_batches_in_the_same_order(cli, half_run, tiny_yaml, tmp_path, micro_batch_size):
    constant = ["--model.schedule.name", "constant"]
    result = cli(*half_run, *constant, "--data.micro_batch_size", str(micro_batch_size))
    assert result.code == 0, result.err
    assert f"data.micro_batch_size 4 -> {micro_batch_size}" in result.err
    whole = cli("fit", "-c", tiny_yaml, "--model.network.dropout", "0", *constant, "--run.name", "whole")
    assert whole.code == 0, whole.err
    ours, uninterrupted = columns(tmp_path / "runs/mini"), columns(tmp_path / "runs/whole")
    assert ours["train/loss"][0] == uninterrupted["train/loss"][0] == list(range(1, 13))
    assert ours["val/loss"][0] == [4, 6, 8, 12]  # the first six steps were a whole run, which ends with a validation
    assert ours["train/loss"][1] == pytest.approx(uninterrupted["train/loss"][1], abs=2e-4)


def test_a_new_run_can_start_from_any_checkpoint(cli, half_run, tiny_yaml, tmp_path):
    checkpoint = tmp_path / "runs/mini/checkpoints/last.ckpt"
    arguments = [*half_run[:-1], "--run.name", "next", "--trainer.max_steps", "8"]
    result = cli(*arguments, "--ckpt_path", checkpoint)
    assert result.code == 0, result.err
    assert columns(tmp_path / "runs/next")["train/loss"][0] == [7, 8]
    assert columns(tmp_path / "runs/mini")["train/loss"][0] == list(range(1, 7))
    result = cli(*arguments, "--ckpt_path", checkpoint.with_name("nosuch.ckpt"))
    assert result.code == 66 and "nosuch.ckpt: no such checkpoint" in result.error
    result = cli(*arguments, "--ckpt_path", "last")
    assert result.code == 66 and "give its file, or go on with a run by --resume" in result.error


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("config", ["its own", "of its name"])
def test_best_and_last_are_the_checkpoints_of_the_run_in_an_evaluation(
    cli, tiny_yaml, finished_run, tmp_path, name, config
):
    shutil.copytree(finished_run, tmp_path / "runs/mini")
    result = cli("validate", "-c", {"its own": "runs/mini/config.yaml"}.get(config, tiny_yaml), "--ckpt_path", name)
    assert result.code == 0 and f"checkpoint: runs/mini/checkpoints/{name}.ckpt\n" in result.err


def test_a_run_that_does_not_exist_cannot_be_resumed(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--resume")
    assert result.code == 66 and "no such run" in result.error


def test_a_run_without_a_checkpoint_is_resumed_from_its_first_step(cli, tiny_yaml, finished_run, tmp_path):
    """Killed before its first checkpoint: what it logged by then is logged once."""
    shutil.copytree(finished_run, tmp_path / "runs/mini", ignore=shutil.ignore_patterns("checkpoints", "model"))
    result = cli("fit", "-c", tiny_yaml, "--resume")
    assert result.code == 0, result.err
    assert "no checkpoint yet: starting from the first step" in result.err
    assert columns(tmp_path / "runs/mini")["train/loss"] == columns(finished_run)["train/loss"]
    assert (tmp_path / "runs/mini/samples.txt").read_text() == (finished_run / "samples.txt").read_text()
    shutil.rmtree(tmp_path / "runs/mini/checkpoints")
    result = cli("fit", "-c", tiny_yaml, "--resume")  # the model of a finished run is not overwritten
    assert result.code == 65 and "has a model but no checkpoint" in result.error


@pytest.mark.parametrize("steps", [12, 5])
def test_resuming_a_finished_run_trains_nothing_and_leaves_it_whole(cli, tiny_yaml, finished_run, tmp_path, steps):
    shutil.copytree(finished_run, tmp_path / "runs/mini")
    result = cli("fit", "-c", tiny_yaml, "--resume", "--trainer.max_steps", steps)
    assert result.code == 0, result.err
    assert f"the run has {steps} steps: there is nothing left to train" in result.err
    assert "12 steps in" not in result.err
    one, other = (read_metrics(folder / "metrics.csv") for folder in (tmp_path / "runs/mini", finished_run))
    assert one == other
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(tinylm.load(tmp_path / "runs/mini")[0](ids), tinylm.load(finished_run)[0](ids))


def test_tensorboard_that_is_not_installed_is_one_line(cli, tiny_yaml, monkeypatch):
    monkeypatch.setattr("tinylm.training.preflight.find_spec", lambda name: None)
    result = cli("fit", "-c", tiny_yaml, "-c", "tensorboard")
    assert result.code == 2
    assert result.error.endswith(
        'tensorboard.yaml: trainer.logger: TensorBoard is not installed; pip install "tinylm[tensorboard]"'
    )


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("model.network.num_layers", "1", "num_layers: checkpoint 2, config 1"),
        ("model.network.num_heads", "4", "num_heads: checkpoint 2, config 4"),
        ("model.network.mup_base_width", "8", "mup_base_width: checkpoint None, config 8"),
        ("data.tokenizer", "byte", "vocab_size: checkpoint"),
    ],
)
def test_another_architecture_or_tokenizer_is_refused(cli, tiny_yaml, finished_run, flag, value, message):
    result = cli("validate", "-c", tiny_yaml, "--run.dir", finished_run.parent, f"--{flag}", value)
    assert result.code == 2
    assert message in result.error


@pytest.fixture
def long_run(tiny_yaml, tmp_path):
    """A real process that trains for long; waits until it has taken some steps."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "scripts/train.py"), "fit", "-c", str(tiny_yaml)]
        command += ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "50000", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TINYLM_RUN")}
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        processes.append(process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs/mini/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def last_step(folder: Path) -> int:
    return torch.load(folder / "runs/mini/checkpoints/last.ckpt")["global_step"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to send")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_signals_save_the_step_and_say_how_to_go_on(long_run, tmp_path, number, code):
    process = long_run()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "error" not in err  # the user asked for it
    step = int(err.rsplit("\ntinylm: stopped after step ", 1)[1].split(",")[0].replace(",", ""))
    assert last_step(tmp_path) % 1000 == step % 1000
    assert err.rstrip().endswith(f"to resume: {command('fit', '--resume', Path('runs/mini'))}")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_killed_run_loses_at_most_one_interval(long_run, tiny_yaml, tmp_path, cli):
    process = long_run()
    time.sleep(0.5)
    process.kill()
    process.wait()
    steps = last_step(tmp_path)
    assert steps % 3 == 0
    logged = read_metrics(tmp_path / "runs/mini/metrics.csv")["train/loss"][0][-1]
    assert 0 <= logged - steps <= 3
    result = cli("fit", "-c", tiny_yaml, "--resume", "--trainer.max_steps", str(steps + 2))
    assert result.code == 0, result.err
    assert f"from step {steps:,}" in result.err
    assert not list((tmp_path / "runs/mini").rglob(".tmp-*"))


def test_the_saved_config_has_the_vocabulary_size_and_a_wrong_one_is_refused(cli, tiny_yaml, tmp_path):
    assert cli("fit", "-c", tiny_yaml, "--run.name", "first").code == 0
    config = tmp_path / "runs/first/config.yaml"
    values = yaml.safe_load(config.read_text())
    size = values["model"]["network"]["vocab_size"]
    assert size == tinylm.load(tmp_path / "runs/first")[1].vocab_size
    assert cli("fit", "-c", config, "--run.name", "again").code == 0
    values["model"]["network"]["vocab_size"] = size + 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    result = cli("fit", "-c", "wrong.yaml", "--run.name", "third")
    message = f"wrong.yaml: model.network.vocab_size: the tokenizer has {size} tokens, got {size + 1}; leave it out"
    assert (result.code, result.error) == (2, message)
    assert not (tmp_path / "runs/third").exists()
    result = cli("validate", "-c", "wrong.yaml", "--run.name", "first")
    assert (result.code, result.error) == (2, message)
