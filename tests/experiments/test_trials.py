"""Trials: their options, the state of their folders, and their shares of the machine."""

import pytest
import yaml

from tinylm.errors import CannotCreateError, ConfigError
from tinylm.experiments import slots
from tinylm.experiments.slots import Slot, job_slots
from tinylm.experiments.trials import Trial, check_names, differences, nested, planned_options, state


def test_options_may_be_dotted_or_nested_but_not_both():
    assert nested({"a.b.c": 1, "a": {"b": {"d.e": 2}}}) == {"a": {"b": {"c": 1, "d": {"e": 2}}}}
    with pytest.raises(ConfigError, match=r"a: is given twice; keep one"):
        nested({"a.b": 1, "a": {"b": 2}})


def test_planned_options_are_those_that_fit_uses(tmp_path):
    base, sgd = str(tmp_path / "base.yaml"), "{class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}"
    (tmp_path / "base.yaml").write_text(f"model: {{optimizer: {sgd}}}\ndata: {{corpus: a.txt}}\n")
    other = {"model.optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.2}}}
    found = planned_options(Trial(name="x", configs=[base], options={**other, "data.corpus": "b.txt"}))
    assert found == {
        "model.optimizer.class_path": "torch.optim.Adam", "model.optimizer.init_args.lr": 0.2, "data.corpus": "b.txt",
    }  # fmt: skip
    found = planned_options(Trial(name="x", configs=[base], options={"model.optimizer": {"name": "muon"}}))
    assert found == {"data.corpus": "a.txt", "model.optimizer.name": "muon"}
    added = [Trial(name="x", configs=[base, base], options={name: [2]}) for name in ("data.split", "data.split+")]
    (tmp_path / "base.yaml").write_text("data: {split: [1]}\n")
    assert [planned_options(trial) for trial in added] == [{"data.split": [2]}, {"data.split": [1, 2]}]
    with pytest.raises(FileNotFoundError, match="nowhere: no such config"):
        planned_options(Trial(name="x", configs=["nowhere"]))


CONFIG = {
    "seed_everything": 1, "trainer": {"max_steps": 8, "devices": 2, "callbacks": [
        {"class_path": "tinylm.training.GradientNorms", "init_args": {"every": 10, "other": 1}}]},
    "model": {"class_path": "mine.Mine", "init_args": {"network": {"d_model": 16, "dropout": 0.0}}},
    "data": {"split": [0.8, 0.2], "cache_dir": "/somewhere"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "planned", "problem"),
    [
        ("seed_everything", 1, None),
        ("seed_everything", 2, "seed_everything is 1 there, 2 planned"),
        ("trainer.max_steps", 9, "trainer.max_steps is 8 there, 9 planned"),
        ("trainer.devices", 4, None),  # does not matter to the result
        ("data.cache_dir", "/elsewhere", None),
        ("run.name", "x", None),
        ("model.network.dropout", 0, None),
        ("model.network.d_model", "16", None),
        ("model.network.d_ff", 7, "model.network.d_ff is null there, 7 planned"),
        ("model.class_path", "mine.Other", "model.class_path is mine.Mine there, mine.Other planned"),
        ("data.split", [0.8, 0.2], None),
        ("data.split", [0.9, 0.1], "data.split is [0.8, 0.2] there, [0.9, 0.1] planned"),
        ("trainer.callbacks", [{"class_path": "GradientNorms", "init_args": {"every": 10}}], None),
        ("trainer.callbacks", [{"class_path": "StepProfile"}], "trainer.callbacks is [{"),
        ("trainer.precision", None, None),  # chosen by the device
    ],
)
def test_a_run_is_the_planned_one_unless_an_option_differs_that_matters(name, planned, problem):
    found = differences({name: planned}, CONFIG)
    assert len(found) == (problem is not None) and "".join(found).startswith(problem or "")


def test_what_is_in_the_place_of_a_run_is_never_taken_over(tmp_path, mini):
    trial = Trial(name="x", configs=[mini], options={"seed_everything": 3})
    assert state(trial, tmp_path) == "new"
    run = tmp_path / "x"
    run.mkdir()
    (run / ".lock").touch()
    assert state(trial, tmp_path) == "new"  # killed before it wrote its config
    (run / "config.yaml").write_text(yaml.safe_dump(nested(planned_options(trial))))
    assert state(trial, tmp_path) == "unfinished"
    (run / "model").mkdir()
    (run / "model/tinylm.json").touch()
    assert state(trial, tmp_path) == "finished"
    with pytest.raises(CannotCreateError, match="seed_everything is 3 there, 4 planned; choose another --out"):
        state(Trial(name="x", configs=[mini], options={"seed_everything": 4}), tmp_path)
    (tmp_path / "y").mkdir()
    (tmp_path / "y/thesis.tex").touch()
    with pytest.raises(CannotCreateError, match=r"y: exists and is not a run of tinylm \(thesis.tex\)"):
        state(Trial(name="y", configs=[mini]), tmp_path)
    (tmp_path / "z").touch()
    with pytest.raises(CannotCreateError, match="z: exists and is not a folder"):
        state(Trial(name="z", configs=[mini]), tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "logs", "trials", ".x"])
def test_names_that_cannot_be_run_folders_are_refused(name):
    with pytest.raises(ConfigError):
        Trial(name=name, configs=["tiny"])


def test_names_that_a_file_system_may_confuse_are_refused():
    with pytest.raises(ConfigError, match="Wide: another trial is called wide"):
        check_names([Trial(name=name, configs=["tiny"]) for name in ("wide", "deep", "Wide")])


def test_trials_share_the_gpus_or_the_cores(monkeypatch, mini):
    trials = [Trial(name="x", configs=["tiny"])]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7,MIG-1,9")
    assert job_slots(1, trials) == [Slot()]
    assert job_slots(2, trials) == [Slot({"CUDA_VISIBLE_DEVICES": each}) for each in ("4,5", "7,MIG-1")]
    with pytest.raises(ConfigError, match="--jobs 6: there are 5 GPUs, and each trial needs one; give --jobs 5"):
        job_slots(6, trials)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert job_slots(3, [Trial(name="x", configs=[mini])]) == [Slot(threads=2)] * 3  # it trains on the CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert job_slots(16, trials) == [Slot(threads=1)] * 16
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert job_slots(2, trials) == [Slot()] * 2
    with pytest.raises(ConfigError, match="--jobs must be at least 1, got 0"):
        job_slots(0, trials)
