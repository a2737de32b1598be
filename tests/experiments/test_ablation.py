"""Ablations: their files, budgets, statistics and tables."""

import csv
import math
import random
import statistics
from pathlib import Path

import pytest
import torch

from tinylm.commands.ablate import chosen_trial
from tinylm.commands.fit_check import check_options
from tinylm.errors import CannotCreateError, ConfigError
from tinylm.experiments.ablation import FOLDER, find_ablation, read_ablation, run_name
from tinylm.experiments.check import check_variants
from tinylm.experiments.export import KINDS, Task, exported
from tinylm.experiments.intervals import paired_difference, t_quantile
from tinylm.experiments.lengths import PLAN, plan_lengths
from tinylm.experiments.results import Result
from tinylm.experiments.table import as_csv, as_markdown, as_text, summarize
from tinylm.experiments.trials import nested, planned_options
from tinylm.files import read_json
from tinylm.model import ModelConfig, parameter_count
from tinylm.runs.compare import Row

# --- files

FILE = """
base: BASE
variants:
  - {name: one head, model.network.num_heads: 1}
  - {name: same}
  - {name: slow, model: {optimizer: {lr: 0.001}}}
seeds: [0, 4]
budget: {steps: 5}
"""


@pytest.fixture
def write(tmp_path, mini):
    """write(old, new, ...) is the path of FILE with replacements."""

    def write(*replaced: str, text: str = FILE) -> Path:
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "heads.yaml"
        path.write_text(text.replace("BASE", mini))
        return path

    return write


def test_the_runs_of_a_file_are_its_variants_for_each_seed(write, mini):
    ablation = read_ablation(write())
    assert ablation.reference == "same"  # it changes nothing of the base
    trials = ablation.trials({each.name: 5 for each in ablation.variants})
    assert [trial.name for trial in trials] == [
        "one head-0", "same-0", "slow-0", "one head-4", "same-4", "slow-4",
    ]  # fmt: skip
    planned = planned_options(trials[-1])
    assert planned["model.optimizer.lr"] == 0.001 and planned["trainer.max_steps"] == 5
    assert [planned_options(trial)["seed_everything"] for trial in trials] == [0, 0, 0, 4, 4, 4]


def test_the_base_is_added_where_no_variant_is_it(write):
    ablation = read_ablation(write("  - {name: same}\n", ""))
    assert [each.name for each in ablation.variants] == ["base", "one head", "slow"] and ablation.reference == "base"


def test_a_grid_is_every_combination(write):
    grid = "grid: {model.optimizer.lr: [0.01, 0.02], model.network.norm: [rmsnorm, layernorm]}\nseeds: 2\n"
    ablation = read_ablation(write(text=f"base: BASE\n{grid}budget: {{steps: 5}}\n"))
    names = [f"lr={lr},norm={norm}" for lr in ("0.01", "0.02") for norm in ("rmsnorm", "layernorm")]
    assert [each.name for each in ablation.variants] == ["base", *names] and ablation.seeds == (0, 1)
    one = read_ablation(
        write(text="base: BASE\ngrid: {model.optimizer.lr: [0.02, 0.01]}\nseeds: 2\nbudget: {steps: 5}\n")
    )
    assert [each.name for each in one.variants] == ["lr=0.02", "lr=0.01"] and one.reference == "lr=0.01"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("variants:", "variant:", "variant: no such entry, did you mean 'variants'?"),
        ("base: BASE\n", "", "base is missing; give it"),
        ("base: BASE", "base: nowhere", "nowhere: no such config"),
        ("base: BASE", "base: 3", "base must be a config, or a list of them"),
        ("seeds: [0, 4]", "grid: {data.seed: [1]}\nseeds: 1", "give either variants or grid"),
        ("seeds: [0, 4]", "seeds: [0, 0]", r"seeds must be .* a list of distinct ones, got \[0, 0\]"),
        ("seeds: [0, 4]", "seeds: 0", "seeds must be"),
        ("seeds: [0, 4]", "seeds: true", "seeds must be"),
        ("{steps: 5}", "{step: 5}", "budget.step: no such entry, did you mean 'steps'?"),
        ("{steps: 5}", "{steps: 5, tokens: 9}", "budget must have one of steps, tokens, flops, seconds"),
        ("{steps: 5}", "{steps: 0.5}", "budget.steps must be a positive number, got 0.5"),
        ("{steps: 5}", "{flops: many}", "budget.flops must be a positive number, got many"),
        ("{name: same}", "{model.network.norm: layernorm}", r"variants\[1\]: must have a name, and options of fit"),
        ("{name: same}", "{name: a/b}", "run.name must be a plain folder name"),
        ("{name: same}", "{name: Slow, data.seed: 1}", "Slow: two variants have this name"),
        ("{name: same}", "{name: x}\n  - {name: y}", "x and y both change nothing of the base"),
        ("{name: same}", "{name: base, data.seed: 1}", "base: names the base, which is trained too"),
        ("{name: same}", "{name: x, seed_everything: 1}", "x: seed_everything follows seeds; leave it out"),
        ("{name: same}", "{name: x, trainer: {max_steps: 1}}", "x: trainer.max_steps follows budget; leave it out"),
        ("{name: same}", "{name: x, run.name: y}", "x: run.name follows name; leave it out"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_named(write, old, new, problem):
    with pytest.raises((ConfigError, FileNotFoundError), match=problem):
        read_ablation(write(old, new))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("model.network.num_head: 1", "heads.yaml: one head: model.network.num_head: no such option, did you mean"),
        ("model.network.num_heads: 3", "heads.yaml: one head: d_model must be divisible by num_heads"),
        ("model.network.num_heads: many", "heads.yaml: one head: model.network.num_heads must be int"),
        ("model.optimizer.lr: -1", "heads.yaml: one head: model.optimizer.lr must be positive"),
        ("model.schedule.name: cosin", "heads.yaml: one head: model.schedule.name must be one of"),
    ],
)
def test_every_variant_is_checked_before_the_first_run(write, given, problem):
    ablation = read_ablation(write("model.network.num_heads: 1", given))
    with pytest.raises(ConfigError, match=problem):
        check_variants(ablation, lambda words: check_options("fit", words))


def test_a_variant_may_name_a_class(write):
    ablation = read_ablation(write("model.network.num_heads: 1", "model.optimizer: {class_path: torch.optim.SGD}"))
    check_variants(ablation, lambda words: check_options("fit", words))


# --- those that come with tinylm


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_ablations_are_valid_and_of_about_equal_size(path):
    ablation = read_ablation(find_ablation(path.stem))
    check_variants(ablation, lambda words: check_options("fit", words))
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.endswith(".") and second == f"#   tinylm ablate {path.stem}"
    assert len(ablation.seeds) >= 3
    sizes = {}
    for each in ablation.variants:
        network = nested(planned_options(ablation.trial(each, "x")))["model"]["network"]
        sizes[each.name] = parameter_count(ModelConfig(vocab_size=1486, **network))
    sizes.pop("learned", None)  # its table is what is compared
    assert max(sizes.values()) < 1.001 * min(sizes.values()), sizes


# --- lengths


def test_a_budget_in_steps_needs_no_run(write, tmp_path):
    ablation = read_ablation(write())
    assert plan_lengths(ablation, tmp_path / "out") == {"one head": 5, "same": 5, "slow": 5}
    other = read_ablation(write("steps: 5", "steps: 6"))
    with pytest.raises(CannotCreateError, match=r"the budget is {'steps': 5.0} there, {'steps': 6.0} now"):
        plan_lengths(other, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / PLAN).write_text("[]")
    with pytest.raises(CannotCreateError, match="exists and is not a plan of tinylm"):
        plan_lengths(ablation, tmp_path / "other")


def test_a_budget_is_divided_by_the_measured_cost_of_a_step_and_kept(write, tmp_path, monkeypatch):
    ablation = read_ablation(write("steps: 5", "flops: 1e8", "  - {name: slow, model: {optimizer: {lr: 0.001}}}\n", ""))
    lengths = plan_lengths(ablation, tmp_path / "out")
    plan = read_json(tmp_path / "out" / PLAN)["variants"]
    # 6 operations for each parameter and 12 for each number of the visible keys, for 4 windows of 16 tokens
    vocabulary = 31 + 1 + 1
    sizes = {name: parameter_count(ModelConfig(vocab_size=vocabulary, d_model=16, num_layers=1, num_heads=heads))
             for name, heads in (("one head", 1), ("same", 2))}  # fmt: skip
    for name, size in sizes.items():
        cost = 64 * (6 * size + 12 * 16 * 16)
        assert abs(plan[name]["flops_per_step"] - cost) < 64 * 6 * 16 * 8  # the size of the vocabulary
        assert lengths[name] == int(1e8 // plan[name]["flops_per_step"])
    assert [path.name for path in (tmp_path / "out").iterdir() if "tmp" in path.name] == []
    monkeypatch.setattr("tinylm.experiments.lengths.run_trials", None)  # nothing is measured again
    assert plan_lengths(ablation, tmp_path / "out") == lengths


# --- statistics


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-5)
    assert t_quantile(degrees, 0.5) == pytest.approx(_by_integration(degrees), abs=1e-3)


def _by_integration(degrees: int) -> float:
    """The quartile of Student's density, summed in double precision."""
    t = torch.linspace(0, 2, 200_001, dtype=torch.float64)
    constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    below = torch.cumulative_trapezoid(constant * (1 + t**2 / degrees) ** (-(degrees + 1) / 2), t)
    return float(t[1:][below >= 0.25][0])


def test_an_interval_holds_the_true_difference_in_95_of_100_cases():
    draws = random.Random(0)
    hits = 0
    for _ in range(2000):
        noise = [draws.gauss(0, 5) for _ in range(3)]  # of the seeds, shared by a pair
        found = paired_difference([each + draws.gauss(0.3, 1) for each in noise], noise)
        low, high = found.interval or (0, 0)
        hits += low < 0.3 < high
    assert 0.935 < hits / 2000 < 0.965


# --- tables


def result(name: str, loss: float | None, excess: float | None = 0.1, seconds: float | None = 10.0) -> Result:
    row = Row(name=name, finished=True, planned=5, parameters=1000, tokens=320.0, steps=5, val_loss=loss,
              bpb=None, excess=excess, seconds=seconds, spread={})  # fmt: skip
    return Result(name, row, None, 6400.0)


LOSSES = {"same": (2.0, 2.2), "one head": (2.1, 2.5), "slow": (2.4, 2.3)}


def results(excess: float | None = 0.1, **others) -> dict[str, Result]:
    pairs = [(name, seed, loss) for name, losses in LOSSES.items() for seed, loss in zip((0, 4), losses, strict=True)]
    return {run_name(name, seed): result(run_name(name, seed), loss, excess, **others) for name, seed, loss in pairs}


def test_the_table_has_means_spreads_and_paired_differences(write):
    ablation = read_ablation(write())
    summaries = summarize(ablation, results())
    rows = {row["variant"]: row for row in csv.DictReader(as_csv(summaries).splitlines())}
    assert [*rows] == ["one head", "same", "slow"]
    row = rows["one head"]
    assert float(row["val_loss"]) == pytest.approx(2.3) and float(row["val_loss_sd"]) == pytest.approx(0.4 / 2**0.5)
    half = 12.7062 * statistics.stdev([0.1, 0.3]) / 2**0.5
    found = [float(row[name]) for name in ("difference", "low", "high")]
    assert found == pytest.approx([0.2, 0.2 - half, 0.2 + half], abs=1e-4)
    assert rows["same"]["difference"] == "" and row["flops"] == "6400.0" and row["tokens_per_sec"] == "32.0"
    text = as_text(ablation, summaries)
    assert "difference to same" in text and "2.3000 ± 0.2828" in text and "bits/byte" not in text
    page = as_markdown(ablation, summaries)
    figures = "2.3000 ± 0.2828 | 10.00% ± 0.00% | +0.2000 | -1.0706 to +1.4706 | 1,000 | 5 | 320 | 32 | 10 s"
    assert f"| one head | 2 | {figures} |" in page
    assert "Unfinished" not in page


def test_a_table_without_times_does_not_depend_on_them(write):
    ablation = read_ablation(write())
    quick, slow = summarize(ablation, results()), summarize(ablation, results(seconds=20.0))
    for form in (lambda found: as_csv(found, times=False), lambda found: as_markdown(ablation, found, times=False)):
        assert form(quick) == form(slow)
    assert as_csv(quick) != as_csv(slow)


def test_missing_runs_are_named_and_pairs_are_of_common_seeds(write):
    ablation = read_ablation(write())
    found = results(excess=None)
    del found["same-4"], found["slow-0"], found["slow-4"]
    summaries = {each.name: each for each in summarize(ablation, found)}
    assert summaries["one head"].difference.pairs == pytest.approx((0.1,))
    assert summaries["one head"].difference.interval is None and summaries["slow"].runs == 0
    page = as_markdown(ablation, [*summaries.values()])
    assert "Unfinished: same (1 of 2), slow (0 of 2)." in page and "above the floor" not in page


def test_a_trial_is_chosen_by_number_or_name():
    names = ["one head-0", "same-0"]
    assert [chosen_trial(each, names) for each in ("1", "one head-0")] == ["same-0", "one head-0"]
    for given, hint in (("2", "numbers go from 0 to 1"), ("same-O", "did you mean 'same-0'?")):
        with pytest.raises(ConfigError, match=f"--trial {given}: no such run.*{hint}"):
            chosen_trial(given, names)


# --- exports


@pytest.fixture
def task(write) -> Task:
    return Task(read_ablation(write()), Path("my runs"), ["--trust", "mine"], ["one head-0", "same-0", "slow-0"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves the file open
def test_a_wandb_sweep_starts_each_run_by_name(task, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

    path = tmp_path / "sweep.yaml"
    path.write_text(exported("wandb", task))
    sweep = load_sweep_config(str(path))  # as `wandb sweep` does
    assert (
        sweep is not None and sweep["method"] == "grid" and sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    )
    assert sweep["parameters"] == {"run.name": {"values": ["one head-0", "same-0", "slow-0"]}}
    words = create_sweep_command_args({"args": {"run.name": {"value": "one head-0"}}})["args"]
    assert words == ["--run.name=one head-0"] and sweep["command"][-1] == "${args}"
    assert sweep["command"][2:-1] == [
        "-m", "tinylm", "ablate", str(task.ablation.path), "--out", "my runs", "--trust", "mine",
        "--config", "overlays/wandb.yaml",
    ]  # fmt: skip


def test_exports_are_recognized_and_valid(task, tmp_path):
    import ast
    import subprocess

    for kind in KINDS:
        assert "written by tinylm ablate --export" in exported(kind, task).partition("\n#   ")[0]
    ast.parse(exported("ray", task))
    script = tmp_path / "array.sh"
    script.write_text(exported("slurm", task))
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "#SBATCH --array=0-2\n" in text and "--out 'my runs' --trust mine --trial" in text
