"""Tokens of branches and of finetuned runs, which include their parents'; computed by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runs.test_compare import METRICS, NETWORK, make_run
from tinylm.model import ModelConfig, flops_per_token
from tinylm.runs.compare import read_run
from tinylm.runs.curves import read_curves
from tinylm.runs.groups import group_by_seed
from tinylm.runs.lineage import find_parent, read_config, unknown_parents
from tinylm.runs.settings import alike, key, labels, read_settings

STEP = 4 * 8  # tokens


def make_base(folder: Path, **changes) -> Path:
    """A run of 30 steps whose model is of step 20."""
    run = make_run(folder, **changes)
    (run / "model/tinylm.json").write_text(json.dumps({"info": {"step": 20}}))
    return run


def record(run: Path, entry: str, step: int) -> None:
    (run / "run.json").write_text(json.dumps({"parents": {entry: {"path": "x", "step": step, "sha256": ""}}}))


def make_branch(folder: Path, parent: Path, step: int = 10, **changes) -> Path:
    """A run with 8 sequences in a batch that goes on from a step of its parent up to step 30."""
    branch = make_run(folder, ckpt_path=f"{parent}/checkpoints/last.ckpt", data__batch_size=8, **changes)
    rows = METRICS.replace("64,0.5", "128,0.5").replace("32,1,", "64,1,").splitlines(keepends=True)
    (branch / "metrics.csv").write_text("".join([rows[0], *rows[2:]]).format(loss=2, bpb=3, excess=1, later=3))
    record(branch, "ckpt_path", step)
    return branch


def test_tokens_of_a_finetuned_run_are_its_parents_and_its_own(tmp_path):
    base = make_base(tmp_path / "base")
    tuned = make_run(tmp_path / "tuned", model__init_from=str(base / "model"))
    again = make_run(tmp_path / "again", model__init_from=str(tuned / "model"))
    record(again, "model.init_from", 10)
    assert read_run(tuned).tokens == (20 + 30) * STEP
    assert read_run(again).tokens == (20 + 10 + 30) * STEP  # three generations
    ((curve,), _) = read_curves([tuned], "tokens")
    assert curve.columns["train/loss"][0].tolist() == [30 * STEP, 40 * STEP, 50 * STEP]
    assert unknown_parents([base, tuned, again]) == []


def test_steps_of_a_branch_before_it_left_its_parent_have_the_parents_batch(tmp_path):
    branch = make_branch(tmp_path / "branch", make_base(tmp_path / "base"))
    assert read_run(branch).tokens == 10 * STEP + 20 * 2 * STEP
    ((curve,), _) = read_curves([branch], "flops")
    each = flops_per_token(ModelConfig(**NETWORK, vocab_size=20))
    np.testing.assert_allclose(curve.columns["train/loss"][0], np.array([30, 50]) * STEP * each)


def test_measured_tokens_count_where_they_are_not_the_planned_ones(tmp_path):
    run = make_run(tmp_path / "schedule")  # from step 20 on, the batch is twice as large
    (run / "metrics.csv").write_text(
        METRICS.replace("30,2.25,64", "30,2.25,128").format(loss=2, bpb=3, excess=1, later=3)
    )
    assert read_run(run).tokens == (10 + 10 + 2 * 10) * STEP
    ((curve,), _) = read_curves([run], "tokens")
    assert curve.columns["train/loss"][0].tolist() == [10 * STEP, 20 * STEP, 40 * STEP]


def test_planned_tokens_follow_the_schedule_of_the_batch_size(tmp_path):
    run = make_run(tmp_path / "growing", data__batch_schedule={"5": 1, "20": 2})
    (run / "metrics.csv").write_text("step,train/loss,val/loss,val/bpb\n10,3,,\n30,2,2,3\n")
    assert read_run(run).tokens == (5 * 1 + 15 * 2 + 10 * 4) * 8
    ((curve,), _) = read_curves([run], "tokens")
    assert curve.columns["train/loss"][0].tolist() == [(5 * 1 + 5 * 2) * 8, (5 * 1 + 15 * 2 + 10 * 4) * 8]


def test_a_parent_is_found_beside_its_child_after_both_were_moved_and_a_missing_one_is_named(tmp_path):
    branch = make_branch(tmp_path / "old/branch", make_base(tmp_path / "old/base"))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new/branch"
    parent = find_parent(moved, read_config(moved))
    assert parent is not None and (parent.folder, parent.step) == (tmp_path / "new/base", 10)
    shutil.rmtree(tmp_path / "new/base")
    assert read_run(moved).tokens == 30 * 2 * STEP
    (remark,) = unknown_parents([moved])
    assert remark == (f"{moved}: ckpt_path {branch.parent}/base/checkpoints/last.ckpt is not a run that can be found; "
                      "its tokens are not counted")  # fmt: skip


def test_a_checkpoint_that_its_run_has_overwritten_since_tells_no_step(tmp_path):
    branch = make_branch(tmp_path / "branch", make_base(tmp_path / "base"))
    (branch / "run.json").unlink()
    assert read_run(branch).tokens == 30 * 2 * STEP
    (remark,) = unknown_parents([branch])
    assert remark.endswith(f"the step at which it left {tmp_path}/base is unknown; all steps are counted as its own")


@pytest.mark.parametrize("begin", [make_branch, lambda folder, parent: make_run(folder, model__init_from=str(parent))])
def test_runs_are_alike_if_their_parents_are(tmp_path, begin):
    bases = [make_base(tmp_path / f"base-{seed}", seed_everything=seed) for seed in (1, 2)]
    other = make_base(tmp_path / "other", model__optimizer={"lr": 0.02})
    runs = [begin(tmp_path / f"run-{number}", base) for number, base in enumerate([*bases, other])]
    found = alike([*map(read_settings, [*runs, bases[0]])])
    assert key(found[0]) == key(found[1]) != key(found[2])
    assert labels(found[1:3]) == ["parent's lr 0.01", "parent's lr 0.02"]
    ((group,), _) = group_by_seed(runs, [read_run(run) for run in runs])
    assert group.name == "parent's lr 0.01 (mean of 2)"
    scratch, begun = labels([found[3], found[0]])
    assert scratch.endswith("from scratch") and begun.endswith(("continued", "finetuned"))


def test_runs_that_name_each_other_end(tmp_path):
    first = make_run(tmp_path / "first", model__init_from=str(tmp_path / "second"))
    second = make_run(tmp_path / "second", model__init_from=str(first))
    for run in (first, second):
        record(run, "model.init_from", 30)
    assert read_run(second).tokens is not None and read_settings(first)
