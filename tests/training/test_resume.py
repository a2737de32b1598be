"""Resuming: exact wherever a run was killed, and nothing of a run or of the user is lost on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from tests import processes
from tests.crossed import crossed
from tests.training.snapshots import Snapshots, differences
from tinylm.bundle import read_checkpoint
from tinylm.runs.folder import Claim
from tinylm.runs.metrics import read_metrics
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.samples import truncate_samples

EPOCHS = {"max_steps": -1, "check_val_every_n_epoch": 1, "val_check_interval": 1.0}


def own(kind: str, **arguments) -> dict:
    return {"class_path": f"lightning.pytorch.callbacks.{kind}", "init_args": arguments}


VARIANTS = {
    "epochs": {"data": {"batch_size": 32}, "trainer": {**EPOCHS, "max_epochs": 3}},
    "epochs and workers": {"data": {"batch_size": 32, "num_workers": 2}, "trainer": {**EPOCHS, "max_epochs": 2}},
    "epochs and steps": {
        "data": {"batch_size": 32},
        "trainer": {**EPOCHS, "max_steps": 10, "max_epochs": 3, "val_check_interval": 0.5},
    },
    "steps validated and epochs counted": {
        "data": {"batch_size": 32},
        "trainer": {**EPOCHS, "max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 3},
    },
    "a last step saved within an epoch": {
        "data": {"batch_size": 32},
        "trainer": {
            **EPOCHS,
            "max_steps": 10,
            "callbacks": [{"class_path": "tinylm.training.LastCheckpoint", "init_args": {"every_n_train_steps": 5}}],
        },
    },
    "short epochs": {"trainer": {**EPOCHS, "max_epochs": 2, "limit_train_batches": 5}},
    "a fraction of an epoch": {"trainer": {"check_val_every_n_epoch": 1, "val_check_interval": 0.2}},
    "an early stop": {
        "trainer": {
            "val_check_interval": 2,
            "callbacks": [own("EarlyStopping", monitor="val/loss", patience=2, min_delta=10.0)],
        }
    },
    "a last step between validations": {"trainer": {"max_steps": 10, "log_every_n_steps": 3}},
    "no validation before the end": {"trainer": {"max_steps": 7, "val_check_interval": 600}},
    "a part of the validation split": {"data": {"max_val_tokens": 200}},
    "no validation part": {"data": {"split": [1.0]}},
    "no validation part, in epochs": {
        "data": {"batch_size": 32, "split": [1.0]},
        "trainer": {**EPOCHS, "max_epochs": 2},
    },
    "no validations": {"trainer": {"limit_val_batches": 0}},
    "batches and rows that grow": {"data": {"batch_schedule": {3: 2, 7: 4}, "context_schedule": {5: 8}}},
}


@pytest.fixture
def trained(cli, tiny_yaml, tmp_path, monkeypatch):
    """Trains with a variant's options and further words, and returns the run and snapshots of its folder on the way."""

    def train(options: dict, *words: str) -> tuple[list[str], Path, list[Path]]:
        from tinylm.training.cli import TinyLMCLI

        (tmp_path / "own.yaml").write_text(yaml.safe_dump(options))
        arguments = ["fit", "-c", str(tiny_yaml), "-c", "own.yaml", "--run.name", "mini", *words]
        snapshots, callbacks = Snapshots(tmp_path / "runs/mini", tmp_path / "snapshots"), TinyLMCLI._callbacks
        with monkeypatch.context() as patch:
            patch.setattr(TinyLMCLI, "_callbacks", lambda *given: [*callbacks(*given), snapshots])
            result = cli(*arguments)
        assert result.code == 0, result.err
        return arguments, tmp_path / "runs/mini", list(snapshots.found.values())

    return train


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "epochs" else [pytest.mark.slow]) for name in VARIANTS]
)
def test_a_run_resumed_from_any_moment_is_the_same_to_the_last_bit(cli, trained, tmp_path, name):
    resumed_is_the_same(cli, tmp_path, *trained(VARIANTS[name]))


def resumed_is_the_same(
    cli, tmp_path, arguments: list[str], whole: Path, snapshots: list[Path], *, but: str | None = None
) -> None:
    """Resumes copies of a run from several moments; the state of the callback `but` may differ."""
    for snapshot in dict.fromkeys([*snapshots[1 :: max(1, len(snapshots) // 4)], *snapshots[-3:-1]]):
        ours = tmp_path / "killed/mini"
        shutil.copytree(snapshot, ours)
        result = cli(*arguments, "--run.dir", "killed", "--resume")
        assert result.code == 0, result.err
        found = differences(ours, whole)
        assert [each for each in found if but is None or f"callbacks: {but}: " not in each] == [], snapshot.name
        shutil.rmtree(ours)


@pytest.mark.slow
def test_a_callback_that_unfreezes_a_block_works_and_its_run_is_resumed_from_any_moment(cli, trained, tmp_path):
    """Lightning's BaseFinetuning restores the groups of the optimizer, but not which parameters have a gradient."""
    epochs = VARIANTS["epochs"]
    callbacks = {"trainer": {**epochs["trainer"], "callbacks": [{"class_path": "tests.training.ranks.Thaw"}]}}
    arguments, whole, snapshots = trained({**epochs, **callbacks}, "--trust", "tests.training.ranks")
    files = [path / "checkpoints/last.ckpt" for path in (*snapshots, whole)]
    first, *_, end = (read_checkpoint(file) for file in files if file.is_file())
    weights = [each["state_dict"]["net.blocks.0.attention.query.weight"] for each in (first, end)]
    groups = [[group["name"] for group in each["optimizer_states"][0]["param_groups"]] for each in (first, end)]
    assert groups[1] == [*groups[0], "muon", "decay"]
    assert not torch.equal(*weights)
    resumed_is_the_same(cli, tmp_path, arguments, whole, snapshots, but="Thaw")


LONGER = {
    "steps": (["--trainer.max_steps", "3"], ["--trainer.max_steps", "8"]),
    "the end of a second epoch": (["--trainer.max_steps", "6"], ["--trainer.max_steps", "9"]),
    "within an epoch": (["--trainer.max_steps", "4"], ["--trainer.max_steps", "8"]),
    "epochs": (["--trainer.max_steps", "-1", "--trainer.max_epochs", "1"],
               ["--trainer.max_steps", "-1", "--trainer.max_epochs", "3"]),
    "batches that grow": (["--trainer.max_steps", "3", "--data.batch_schedule", "{2: 4, 5: 6}"],
                          ["--trainer.max_steps", "8", "--data.batch_schedule", "{2: 4, 5: 6}"]),
}  # fmt: skip


VALIDATIONS = {"by step": ["4", "null"], "by epoch": ["1.0", "1"]}


@pytest.mark.parametrize(("name", "validation"), crossed(LONGER, VALIDATIONS, every=3))
def test_a_finished_run_that_is_made_longer_is_the_longer_run(cli, tiny_yaml, tmp_path, name, validation):
    """Epochs of three steps of two micro-batches: the next one begins with its first micro-batch."""
    options = ["--trainer.limit_train_batches", "3", "--model.schedule.name", "constant", "--run.sample_tokens", "0"]
    interval, epochs = VALIDATIONS[validation]
    options += ["--trainer.val_check_interval", interval, "--trainer.check_val_every_n_epoch", epochs]
    first, then = LONGER[name]
    for words in ([*then, "--run.name", "whole"], [*first, "--run.name", "longer"]):
        assert cli("fit", "-c", tiny_yaml, *options, *words).code == 0
    result = cli("fit", "-c", tiny_yaml, *options, *then, "--run.name", "longer", "--resume")
    assert result.code == 0, result.err
    longer, whole = (read_metrics(tmp_path / "runs" / run / "metrics.csv") for run in ("longer", "whole"))
    assert longer["train/loss"] == whole["train/loss"] and longer["lr"] == whole["lr"]
    shared = set(whole["val/loss"][0])
    rows = [dict(zip(*each["val/loss"], strict=True)) for each in (longer, whole)]
    assert {step: rows[0][step] for step in shared} == rows[1]


# --- what is not ours


@pytest.mark.parametrize("content", ["thesis.txt", "config.yaml"])
def test_a_start_that_fails_under_torchrun_removes_nothing(cli, tiny_yaml, tmp_path, monkeypatch, content):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    folder = tmp_path / "runs/mine"
    (folder / "model").mkdir(parents=True)
    (folder / content).write_text("three years of work")
    result = cli("fit", "-c", tiny_yaml, "--run.name", "mine")
    assert result.code == 73 and "exists; resume it" in result.error
    assert (folder / content).read_text() == "three years of work" and (folder / "model").is_dir()


def test_a_start_that_fails_removes_its_own_empty_folder_only(cli, tiny_yaml, tmp_path):
    wrong = ["--trainer.strategy", "ddpp"]  # found when the trainer is created
    assert cli("fit", "-c", tiny_yaml, *wrong).code != 0
    assert not (tmp_path / "runs/mini").exists()
    (tmp_path / "runs/mini").mkdir()
    assert cli("fit", "-c", tiny_yaml, *wrong).code != 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mini"]


def test_the_best_checkpoint_survives_a_moved_folder_and_another_spelling(cli, tiny_yaml, tmp_path):
    first = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "8")
    assert first.code == 0, first.err
    (tmp_path / "runs/mini").rename(tmp_path / "runs/moved")
    best = (tmp_path / "runs/moved/checkpoints/best.ckpt").read_bytes()
    worse = ["--model.optimizer.lr", "30", "--trainer.gradient_clip_val", "100"]
    for spelling in (Path("runs/moved"), tmp_path / "runs/../runs/moved"):
        steps = ["--trainer.max_steps", str(10 if spelling == Path("runs/moved") else 12)]
        result = cli(
            "fit", "-c", tiny_yaml, *worse, *steps, "--run.dir", spelling.parent, "--run.name", "moved", "--resume"
        )
        assert result.code == 0, result.err
        assert (tmp_path / "runs/moved/checkpoints/best.ckpt").read_bytes() == best
        assert "model of step 8: " in result.err and "(validation loss " in result.err


# --- one writer


def test_a_second_writer_is_refused_and_a_killed_one_blocks_nobody(tmp_path):
    code = f"from tinylm.runs.folder import Claim\nclaim = Claim(__import__('pathlib').Path({str(tmp_path)!r}))\n"
    code += "print('claimed', flush=True)\nimport time; time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=processes.ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == b"claimed\n"
    with pytest.raises(OSError, match=rf"process {holder.pid} on .* is writing this run"):
        Claim(tmp_path)
    holder.kill()
    holder.communicate()
    Claim(tmp_path).release()


def test_a_run_cannot_be_resumed_twice_at_once(cli, tiny_yaml, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "runs/mini")
    claim = Claim(tmp_path / "runs/mini")
    result = cli("fit", "-c", tiny_yaml, "--resume")
    claim.release()
    assert result.code == 73 and f"process {os.getpid()} on" in result.error
    assert cli("fit", "-c", tiny_yaml, "--resume").code == 0


# --- what a resumed run reads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network.d_model", "64"], "d_model: checkpoint 32, config 64"),
        (["--model.optimizer.name", "adamw"], "optimizer.name: checkpoint muon, config adamw"),
        (["--model.freeze.patterns", "[embedding.*]"], "model.freeze: this run freezes one parameter that the"),
        (["--data.corpus", "names.txt"], "data: names.txt is not the text that the checkpoint was trained on"),
        (["--ckpt_path", "x.ckpt"], "--ckpt_path: --resume takes the run's newest checkpoint"),
    ],
)
def test_a_refused_resume_changes_no_file(cli, tiny_yaml, finished_run, tmp_path, arguments, message):
    run = shutil.copytree(finished_run, tmp_path / "runs/mini")
    (tmp_path / "names.txt").write_text("another text. " * 200)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = cli("fit", "-c", tiny_yaml, *arguments, "--resume")
    assert result.code == 2 and message in result.error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_resumed_run_trains_the_same_parameters(cli, tiny_yaml, tmp_path):
    """Blocks 0 and 1 have equal shapes, so PyTorch would give one the optimizer's state of the other."""
    frozen = ["fit", "-c", tiny_yaml, "--model.freeze.layers", "[0]"]
    assert cli(*frozen, "--trainer.max_steps", "4").code == 0
    assert cli(*frozen, "--resume").code == 0
    result = cli("fit", "-c", tiny_yaml, "--model.freeze.layers", "[1]", "--trainer.max_steps", "30", "--resume")
    assert result.code == 2 and "model.freeze: this run freezes" in result.error and "blocks.1." in result.error
    result = cli("fit", "-c", tiny_yaml, "--model.freeze.layers", "[]", "--trainer.max_steps", "30", "--resume")
    assert result.code == 2 and "model.freeze: this run trains" in result.error and "blocks.0." in result.error


def test_a_text_that_has_changed_under_its_name_is_refused(cli, tiny_yaml, corpus, tmp_path):
    shutil.copy(corpus, tmp_path / "my.txt")
    arguments = ["fit", "-c", tiny_yaml, "--data.corpus", "my.txt"]
    assert cli(*arguments, "--trainer.max_steps", "4").code == 0
    text = (tmp_path / "my.txt").read_text()
    (tmp_path / "my.txt").write_text(text[:-100] + text[-100:][::-1])
    result = cli(*arguments, "--resume")
    assert result.code == 2 and "my.txt is not the text that the checkpoint was trained on" in result.error
    checkpoint = "runs/mini/checkpoints/last.ckpt"
    result = cli(*arguments, "--run.name", "next", "--ckpt_path", checkpoint)  # a new run may
    assert result.code == 0 and "is not the text" in result.err
    assert yaml.safe_load((tmp_path / "runs/next/config.yaml").read_text())["ckpt_path"] == checkpoint
    result = cli("validate", "-c", "runs/next/config.yaml")  # its own best, not the checkpoint that it began from
    assert result.code == 0 and "checkpoint: runs/next/checkpoints/best.ckpt" in result.err


def test_a_run_is_resumed_by_its_own_config(cli, tiny_yaml, tmp_path, monkeypatch):
    from tinylm.commands.train import resumed_run

    monkeypatch.chdir(tmp_path)
    assert cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "4", "--run.name", "mine").code == 0
    for words in (["--resume", "runs/mine"], ["--resume=mine"], ["--run.name", "mine", "--resume"]):
        assert cli("fit", *resumed_run([*words, "--trainer.max_steps", "6"], default="small")).code == 0
    assert read_metrics(tmp_path / "runs/mine/metrics.csv")["train/loss"][0] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(OSError, match=r"runs.yours: no such run; runs has mine"):
        resumed_run(["--resume", "yours"], default="small")


def test_a_new_run_from_a_checkpoint_at_its_end_is_refused(cli, tiny_yaml, finished_run):
    checkpoint = finished_run / "checkpoints/last.ckpt"
    result = cli("fit", "-c", tiny_yaml, "--ckpt_path", checkpoint)
    assert result.code == 2 and "has 12 steps already; raise trainer.max_steps" in result.error


def test_an_early_stop_lasts_until_the_patience_is_raised(cli, tiny_yaml, tmp_path):
    def stop(patience: int) -> list[str]:
        return [
            "--trainer.callbacks",
            str([own("EarlyStopping", monitor="val/loss", patience=patience, min_delta=10.0)]),
        ]

    arguments = ["fit", "-c", tiny_yaml, "--trainer.val_check_interval", "2"]
    assert cli(*arguments, *stop(2)).code == 0
    assert read_checkpoint(tmp_path / "runs/mini/checkpoints/last.ckpt")["global_step"] == 6
    result = cli(*arguments, *stop(2), "--resume")
    assert "the run was stopped early" in result.err and "did not improve" in result.err
    assert read_checkpoint(tmp_path / "runs/mini/checkpoints/last.ckpt")["global_step"] == 6
    assert cli(*arguments, *stop(3), "--resume").code == 0
    assert read_checkpoint(tmp_path / "runs/mini/checkpoints/last.ckpt")["global_step"] == 8


def test_a_damaged_best_checkpoint_is_named_and_replaced(cli, tiny_yaml, tmp_path):
    assert cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "8").code == 0
    best = tmp_path / "runs/mini/checkpoints/best.ckpt"
    best.write_bytes(best.read_bytes()[:-2000])
    result = cli("fit", "-c", tiny_yaml, "--resume")
    assert result.code == 0 and "best.ckpt: is" in result.err and "resuming from last.ckpt (step 8)" in result.err
    assert read_checkpoint(best)["global_step"] == 12


# --- metrics and samples


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (lambda data: data.replace(b"5,", b"\xff\xfe,", 1), "line 3"),
        (lambda data: data + b"7,1,2,3,4,5,6\n", "line 5"),
        (lambda data: data.replace(b"0.25", b"a dog"), "line 3"),
        (lambda data: b"\0\0\0" + data, "line 1, 2, 3, 4"),
    ],
)
def test_damaged_metrics_do_not_block_a_resume(tmp_path, capfd, damage, lines):
    data = b"step,train/loss\n4,0.5\n5,0.25\n6,0.125\n"
    path = tmp_path / "metrics.csv"
    path.write_bytes(damage(data))
    MetricsCSV(tmp_path).truncate(5)
    err = capfd.readouterr().err
    assert f"metrics.csv: {lines} cannot be read" in err and "metrics-damaged.csv is a copy" in err
    assert (tmp_path / "metrics-damaged.csv").read_bytes() == damage(data)
    assert b"6,0.125" not in path.read_bytes()
    read_metrics(path)


def test_samples_beyond_the_step_are_dropped(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_bytes(b"=== step 4\nA dog.\n\n=== step 8\nA cat \xf0\x9f.\n\n=== step 12\nA cow.\n\n")
    truncate_samples(path, 8)
    assert path.read_bytes() == b"=== step 4\nA dog.\n\n=== step 8\nA cat \xf0\x9f.\n\n"
    truncate_samples(path, 8, validating=True)
    assert path.read_bytes() == b"=== step 4\nA dog.\n\n"


# --- the user's own callbacks and intervals


def test_a_users_own_checkpoints_are_named_after_their_steps_and_all_kept(cli, tiny_yaml, tmp_path):
    callback = own("ModelCheckpoint", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", str(callback))
    assert result.code == 0, result.err
    folder = tmp_path / "runs/mini/checkpoints"
    kept = {path.name for path in folder.iterdir()} - {"last.ckpt", "best.ckpt"}
    assert kept == {f"step={step}.ckpt" for step in (3, 6, 9, 12)}
    assert {name: read_checkpoint(folder / name)["global_step"] for name in kept} == {
        f"step={step}.ckpt": step for step in (3, 6, 9, 12)
    }
    assert not (tmp_path / "runs/mini/mini").exists()


@pytest.mark.parametrize("arguments", [{"save_last": True}, {"filename": "best"}])
def test_a_users_checkpoint_callback_must_not_write_our_files(cli, tiny_yaml, arguments):
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", str(own("ModelCheckpoint", **arguments)))
    assert result.code == 2 and "must not write best.ckpt or last.ckpt" in result.error


def test_intervals_of_zero_mean_never(cli, tiny_yaml, tmp_path):
    never = str([{"class_path": "tinylm.training.LastCheckpoint", "init_args": {"every_n_train_steps": 0}}])
    result = cli("fit", "-c", tiny_yaml, "--trainer.log_every_n_steps", "0", "--trainer.callbacks", never)
    assert result.code == 0, result.err
    assert "train/loss" not in read_metrics(tmp_path / "runs/mini/metrics.csv")
    assert read_checkpoint(tmp_path / "runs/mini/checkpoints/last.ckpt")["global_step"] == 12


def test_overfit_batches_is_refused_by_name(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.overfit_batches", "2")
    assert result.code == 2 and "trainer.overfit_batches: not supported; set data.train_tokens" in result.error


@pytest.mark.parametrize(
    ("arguments", "updates"),
    [
        (["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "2", "--trainer.max_steps", "-1"], 6),
        (["--trainer.limit_train_batches", "0.3", "--trainer.max_epochs", "2", "--trainer.max_steps", "-1"], 10),
        (["--trainer.max_epochs", "1", "--trainer.max_steps", "1500"], 19),
    ],
)
def test_limits_count_whole_optimizer_steps(cli, tiny_yaml, tmp_path, arguments, updates):
    """4,829 tokens in windows of 32, 8 a step, in two micro-batches: 19 steps an epoch, 30% of which are 5."""
    epochs = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"]
    result = cli("fit", "-c", tiny_yaml, *epochs, *arguments)
    assert result.code == 0, result.err
    assert f"training: {updates} steps of 8" in result.err
    checkpoint = read_checkpoint(tmp_path / "runs/mini/checkpoints/last.ckpt")
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert (checkpoint["global_step"], progress["ready"]) == (updates, 2 * updates)


class StopsWithinAStep(pl.Callback):
    """Stops after the first micro-batch of the fourth step, as `max_time` may."""

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.fit_loop.epoch_loop.total_batch_idx == 6


def test_a_run_that_stops_within_a_step_repeats_the_step(cli, tiny_yaml, tmp_path, monkeypatch):
    from tinylm.training.cli import TinyLMCLI

    assert cli("fit", "-c", tiny_yaml, "--run.name", "whole").code == 0
    callbacks = TinyLMCLI._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(TinyLMCLI, "_callbacks", lambda *given: [*callbacks(*given), StopsWithinAStep()])
        assert cli("fit", "-c", tiny_yaml, "--run.name", "timed").code == 0
    last = read_checkpoint(tmp_path / "runs/timed/checkpoints/last.ckpt")
    progress = last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert (last["global_step"], progress["ready"]) == (3, 7)
    assert cli("fit", "-c", tiny_yaml, "--run.name", "timed", "--resume").code == 0
    states = [torch.load(tmp_path / f"runs/{name}/checkpoints/last.ckpt") for name in ("timed", "whole")]
    torch.testing.assert_close(*(state["state_dict"] for state in states), atol=0, rtol=0)


def test_an_interval_longer_than_an_epoch_is_refused_in_steps(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=50")
    assert result.code == 2 and "must be at most the 19 steps of an epoch, got 50; set check_val" in result.error


# --- validation


def test_the_end_of_a_run_is_validated_and_logged(cli, tiny_yaml, tmp_path):
    arguments = [
        "--trainer.max_steps",
        "10",
        "--trainer.val_check_interval",
        "600",
        "--trainer.log_every_n_steps",
        "50",
    ]
    assert cli("fit", "-c", tiny_yaml, *arguments).code == 0
    metrics = read_metrics(tmp_path / "runs/mini/metrics.csv")
    assert metrics["val/loss"][0] == [10] and metrics["train/loss"][0] == [*range(1, 11)]
    assert "=== step 10" in (tmp_path / "runs/mini/samples.txt").read_text()


def test_the_best_checkpoint_may_be_of_a_last_step_within_an_epoch(cli, tiny_yaml, tmp_path):
    options = ["--trainer.limit_train_batches", "3", "--trainer.max_steps", "8", "--trainer.max_epochs", "3"]
    options += ["--trainer.val_check_interval", "1.0", "--trainer.check_val_every_n_epoch", "1"]
    result = cli("fit", "-c", tiny_yaml, *options)
    assert result.code == 0 and "could not find the monitored key" not in result.err
    steps, losses = read_metrics(tmp_path / "runs/mini/metrics.csv")["val/loss"]
    assert steps == [3, 6, 8] and losses[2] == min(losses)  # which the tiny run reaches
    assert read_checkpoint(tmp_path / "runs/mini/checkpoints/best.ckpt")["global_step"] == 8


def test_a_long_validation_reads_a_part_and_the_end_the_whole(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, "--data.max_val_tokens", "200")
    assert "validation: 200 of 604 tokens, evenly spaced" in result.err
    whole = float(result.err.split("on all 604 validation tokens: validation loss ")[1].split()[0])
    check = cli("validate", "-c", tiny_yaml)  # best.ckpt on the whole split
    assert float(check.out.split("val/loss")[1].split()[0]) == pytest.approx(whole, abs=6e-5)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to send")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_validation_of_minutes_is_left_within_seconds_and_repeated(tiny_yaml, tmp_path, number, code):
    text = "".join(f"the quick brown fox {n} jumps over the lazy dog.\n" for n in range(60_000))
    (tmp_path / "long.txt").write_text(text)
    arguments = ["fit", "-c", str(tiny_yaml), "--data.corpus", "long.txt", "--data.split", "[0.1, 0.9]"]
    arguments += ["--trainer.max_steps", "3", "--data.max_val_tokens", "100000000"]
    process = processes.start(processes.command_line, arguments, tmp_path, tmp_path / "log", OMP_NUM_THREADS="1")
    last = tmp_path / "runs/mini/checkpoints/last.ckpt"
    deadline = time.monotonic() + 60
    while not last.exists() and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(process.pid, number)
    process.join(30)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == code, log
    assert time.monotonic() - sent < 5, log
    assert "leaving the validation" in log and "stopped in the validation after step 3, which is saved" in log
    assert read_checkpoint(last)["callbacks"]["ExactResume"] == {"validating": True, "validated": -1}
