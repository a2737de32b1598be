"""Figures of made-up runs, computed by hand."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tinylm.errors import DataError, MissingInputError
from tinylm.runs.compare import find_runs, read_run, sort_rows, training_seconds
from tinylm.runs.groups import group_by_seed

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": None, "d_ff": 32, "max_seq_len": 8}
NETWORK |= {"tie_embeddings": True, "qk_norm": True}
# 4 projections of 16 x 16, 3 matrices of 16 x 32, 2 + 1 norms of 16, 2 of queries and keys of 8, 20 embeddings of 16
PARAMETERS = 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16 + 2 * 8 + 20 * 16
METRICS = """step,train/loss,perf/tokens_per_sec,perf/step_seconds,val/loss,val/bpb,val/excess
10,3,64,0.5,,,
20,2.5,32,1,,,
20,,,,{loss},{bpb},{excess}
30,2.25,64,0.5,,,
30,,,,{later},3.75,0.75
"""


def make_run(folder: Path, loss: float = 2.5, later: float = 2.75, finished: bool = True, **changes) -> Path:
    """30 steps of 4 x 8 tokens: 10 steps at 64 tokens/s, 10 at 32, 10 at 64, which is 5 + 10 + 5 seconds."""
    config = {
        "seed_everything": 0,
        "trainer": {"max_steps": 30, "logger": None},
        "model": {"network": {**NETWORK, "vocab_size": 20}, "optimizer": {"lr": 0.01}},
        "data": {"batch_size": 4, "seed": 0, "cache_dir": None},
        "run": {"name": folder.name},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    folder.mkdir(parents=True)
    text = yaml.safe_dump(config)
    (folder / "config.yaml").write_text(text)
    (folder / "metrics.csv").write_text(METRICS.format(loss=loss, bpb=loss + 1, excess=loss - 2, later=later))
    if finished:
        (folder / "model").mkdir()
        (folder / "model/tinylm.json").write_text("{}")
        header = json.dumps({"__metadata__": {}, "a": {"shape": [20, 16]}, "b": {"shape": [16]}}).encode()
        (folder / "model/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def test_figures_of_a_finished_run(tmp_path):
    row = read_run(make_run(tmp_path / "small"))
    assert (row.name, row.finished, row.runs, row.planned) == ("small", True, 1, 30)
    assert row.parameters == 20 * 16 + 16
    assert (row.steps, row.tokens) == (30, 30 * 4 * 8)
    assert (row.val_loss, row.bpb, row.excess) == (2.5, 3.5, 0.5)  # all three of the best step, 20, and not of the last
    assert row.seconds == 5 + 10 + 5


def test_an_unfinished_run_says_what_is_known_of_it(tmp_path):
    row = read_run(make_run(tmp_path / "small", finished=False, trainer__max_steps=100))
    assert (row.finished, row.planned, row.steps, row.parameters) == (False, 100, 30, PARAMETERS)
    (tmp_path / "small/metrics.csv").unlink()
    row = read_run(tmp_path / "small")
    assert (row.steps, row.tokens, row.val_loss, row.bpb, row.excess, row.seconds) == (0, 0, None, None, None, None)


def test_parameters_are_those_of_the_network(tmp_path):
    from tinylm.model import ModelConfig, TransformerLM

    network = TransformerLM(ModelConfig(vocab_size=20, **NETWORK))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS


def test_time_counts_the_steps_between_two_rows():
    assert training_seconds([1, 5], [1.0, 0.5]) == 1 + 4 * 0.5
    assert training_seconds([], []) is None


def test_tokens_of_padded_pairs_are_those_of_the_measured_width(tmp_path):
    folder = make_run(tmp_path / "pairs", data__pairs="mine.jsonl")
    measured = METRICS.replace("64,0.5", "40.0001,0.5").replace("32,1", "20,1")  # 4 x 5 a step: none is longer
    (folder / "metrics.csv").write_text(measured.format(loss=2, bpb=3, excess="", later=3))
    assert read_run(folder).tokens == 30 * 4 * 5


def test_runs_that_differ_by_seed_alone_are_one_line(tmp_path):
    losses = [1.75, 2.25, 2.75]
    seeds = [
        make_run(tmp_path / f"small-s{number}", loss, seed_everything=number, data__seed=number, data__cache_dir=number)
        for number, loss in enumerate(losses)
    ]
    others = [
        make_run(tmp_path / "other-1", 3.0, model__optimizer={"lr": 0.02}),
        make_run(tmp_path / "small-tracked", 3.0, trainer__logger=[{"class_path": "x"}], model__optimizer={"lr": 0.02}),
        make_run(tmp_path / "small-unfinished", finished=False, seed_everything=9),
        make_run(tmp_path / "small-longer", seed_everything=9),
        make_run(tmp_path / "small-unvalidated", seed_everything=9),
    ]
    with (tmp_path / "small-longer/metrics.csv").open("a") as file:
        file.write("40,2,64,,,\n")
    (tmp_path / "small-unvalidated/metrics.csv").write_text("step,train/loss\n30,2\n")
    folders = [*seeds, *others]
    means, remarks = group_by_seed(folders, [read_run(folder) for folder in folders])
    groups = sort_rows(means, "val_loss")
    assert [(group.name, group.runs) for group in groups] == [("lr 0.01 (mean of 3)", 3), ("lr 0.02 (mean of 2)", 2)]
    assert [remark.removeprefix(f"{tmp_path}/").replace(str(tmp_path), "") for remark in remarks] == [
        "small-unfinished: is unfinished; not averaged with the other runs of its settings",
        "small-longer: has 40 steps, more than the 30 of its config; not averaged with the other runs of its settings",
        "small-unvalidated: has no validation; not averaged with the other runs of its settings",
        "small-tracked: has the seeds of /other-1; it counts as a separate run in mean and spread",
    ]
    group = groups[0]
    assert group.val_loss == 2.25
    assert group.spread["val_loss"] == pytest.approx(math.sqrt((0.5**2 + 0 + 0.5**2) / 2))
    assert (group.bpb, group.spread["seconds"], group.steps) == (3.25, 0, 30)
    assert group.parameters == 20 * 16 + 16 and group.spread.keys() == {"val_loss", "bpb", "excess", "seconds"}


def test_a_group_in_which_one_has_no_floor_has_no_excess(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    text = (folders[1] / "metrics.csv").read_text()
    (folders[1] / "metrics.csv").write_text(re.sub(r",[^,]*$", "", text, flags=re.MULTILINE))
    ((group,), _) = group_by_seed(folders, [read_run(folder) for folder in folders])
    assert (group.val_loss, group.excess) == (2.5, None)
    assert group.name == "a (mean of 2)" and "excess" not in group.spread


def test_what_is_unknown_is_sorted_last(tmp_path):
    rows = [read_run(make_run(tmp_path / f"r{loss}", loss)) for loss in (2.5, 2.25)]
    (tmp_path / "r2.25/metrics.csv").unlink()
    unknown = read_run(tmp_path / "r2.25")
    assert [row.name for row in sort_rows([unknown, *rows], "val_loss")][-1] == "r2.25"
    assert [row.name for row in sort_rows(rows, "val_loss")] == ["r2.25", "r2.5"]


def test_folders_that_are_no_run_are_skipped_and_none_at_all_is_an_error(tmp_path, capfd):
    run = make_run(tmp_path / "runs/a")
    (tmp_path / "empty").mkdir()
    assert find_runs([run, tmp_path / "runs", tmp_path / "empty"]) == [run]
    assert f"{tmp_path / 'empty'}: not a run" in capfd.readouterr().err
    with pytest.raises(MissingInputError, match=re.escape(f"{tmp_path / 'empty'}: not a run")):
        find_runs([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "a: ["), ("config.yaml", "a: 1"), ("metrics.csv", "x\n1\n")]
)
def test_a_damaged_run_is_named(tmp_path, name, text):
    run = make_run(tmp_path / "a")
    (run / name).write_text(text)
    with pytest.raises(DataError, match=f"{re.escape(str(run))}(: is damaged|/config.yaml: is not valid YAML)"):
        read_run(run)


def test_finished_runs_are_read_without_torch(tmp_path):
    make_run(tmp_path / "a")
    code = "import sys; from tinylm.runs.compare import *; read_run(Path('a')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}).returncode == 0
