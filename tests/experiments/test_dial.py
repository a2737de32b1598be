"""The dial: budgets as they are written, the choice against an exhaustive search, and the run that follows."""

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tinylm.commands import run_command
from tinylm.commands.fit_auto import resolve
from tinylm.errors import ConfigError
from tinylm.experiments import candidates, dial, grid
from tinylm.experiments.budget import Budget
from tinylm.model import flops_per_token, parameter_count
from tinylm.runs.folder import RUN_FOLDER

SPEED = 2e-11  # seconds of an operation


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of a known speed, whose clock stands still."""

    def seconds(workload, kind, precision, spend):
        return 0.002 + SPEED * flops_per_token(workload.network) * workload.batch_size * workload.context

    monkeypatch.setattr(dial, "step_seconds", seconds)
    monkeypatch.setattr(candidates, "measure_peak_flops", lambda *_: 1 / SPEED)
    monkeypatch.setattr(dial, "time", SimpleNamespace(perf_counter=lambda: 100.0))


def chosen(budget: Budget, **given) -> tuple[dial.Dial, dial.Choice]:
    found = dial.Dial(budget, {name.replace("__", "."): value for name, value in given.items()}, 100.0)
    return found, found.choose()


# --- budgets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10min", Budget(seconds=600)), ("90 s", Budget(seconds=90)), ("1.5h", Budget(seconds=5400)),
        ("2 days", Budget(seconds=172800)), ("1e15flops", Budget(flops=1e15)), ("3TFLOPs", Budget(flops=3e12)),
        ("500 gflop", Budget(flops=5e11)),
    ],
)  # fmt: skip
def test_budgets_are_read_as_they_are_written(text, expected):
    assert Budget.read(text) == expected


@pytest.mark.parametrize("text", ["10", "soon", "-5min", "0s", "1e15", "5 lightyears", "10minutess", "", "nan s"])
def test_other_budgets_are_refused_with_examples(text):
    with pytest.raises(
        ConfigError, match="must be a time or a number of operations, as in 10min, 90s, 2h or 1e15flops"
    ):
        Budget.read(text)


def test_a_budget_below_the_start_of_a_run_is_refused():
    with pytest.raises(ConfigError, match="--budget must be at least 20 seconds, since a run takes"):
        Budget.read("5s")


def test_numbers_of_parameters_are_read():
    assert Budget.read_parameters("2M").parameters == 2_000_000
    assert Budget.read_parameters("1.5k").parameters == 1500
    for text in ("2X", "many", "0", "0.1"):
        with pytest.raises(ConfigError, match="--params must be a number of parameters, as in 500k or 2M"):
            Budget.read_parameters(text)


# --- the choice


def test_a_time_is_spent_on_the_width_of_the_lowest_expected_loss():
    found, choice = chosen(Budget(seconds=120))
    batch = found.runs.step_tokens

    def loss(width: int) -> float:
        network = found.runs.network(width)
        step = 0.002 + SPEED * flops_per_token(network) * batch
        validation = dial.FORWARD * step / batch * found.runs.data.content.num_tokens("val")
        beside = dial.START + dial.END + found.runs.validations * (dial.VALIDATION + validation)  # imports of a second
        return found.law.loss(parameter_count(network), (120 - beside) / step * batch)

    best = min((width for width in candidates.WIDTHS if width < 300), key=loss)
    width = choice.values["model"]["network"]["d_model"]
    assert loss(width) <= loss(best) * 1.001
    assert choice.seconds == pytest.approx(120, abs=1)
    floor = found.runs.data.floors["val"].nats_per_token
    excess = choice.expected.loss - floor
    assert excess == pytest.approx(found.law.loss(choice.parameters, choice.tokens) - found.law.constants.floor)
    assert choice.expected.low < choice.expected.loss < choice.expected.high


def test_operations_and_parameters_bound_the_run_they_name():
    found, choice = chosen(Budget(flops=2e11))
    width = choice.values["model"]["network"]["d_model"]
    spent = flops_per_token(found.runs.network(width)) * choice.tokens
    assert spent == pytest.approx(2e11, rel=0.02)
    assert choice.parameters == pytest.approx(found.law.best(2e11).params, rel=0.2)
    found, choice = chosen(Budget(parameters=100_000))
    assert choice.parameters == pytest.approx(100_000, rel=0.15)
    cost = found.law.flops(choice.parameters, choice.tokens)
    assert found.law.best(cost).params == pytest.approx(choice.parameters, rel=0.1)


def test_given_options_hold_and_end_the_promise_of_the_loss(tmp_path):
    _, choice = chosen(Budget(flops=2e10), data__batch_size=8, model__network__d_model=32)
    assert choice.values["data"]["batch_size"] == 8 and choice.values["model"]["network"]["d_model"] == 32
    assert choice.expected is None and choice.reason == "the law does not cover data.batch_size=8"
    _, choice = chosen(Budget(flops=2e10), model__network__d_model=32, trainer__precision="32-true")
    assert choice.expected is not None and choice.values["trainer"]["precision"] == "32-true"
    text = str(tmp_path / "my.txt")
    Path(text).write_text("".join(f"the quick brown fox {n} jumps over the lazy dog.\n" for n in range(2000)))
    _, choice = chosen(Budget(flops=2e10), data__corpus=text, data__tokenizer="char", model__network__max_seq_len=64)
    assert choice.reason == "the law holds for the built-in stories" and choice.expected is None
    assert choice.values["data"]["corpus"] == text and choice.values["model"]["network"]["max_seq_len"] == 64


@pytest.mark.parametrize(
    ("overhead", "seconds", "given", "batch"),
    [
        (0.05, 300, {}, 16),  # most of a step is overhead: more tokens in little more time
        (0.02, 120, {}, 8),
        (0.02, 40, {}, 4),  # the others would leave fewer than 1,000 steps, or a narrow network
        (0.0, 120, {}, 4),  # nothing is gained
        (0.05, 300, {"data__batch_size": 4}, 4),
        (0.05, 300, {"data__micro_batch_size": 16}, 16),
        (2.0, 10**6, {}, 4),  # a step of two seconds is not measured with more sequences
    ],
)
def test_a_larger_batch_is_taken_if_it_is_faster_and_leaves_enough_steps(monkeypatch, overhead, seconds, given, batch):
    def measured(workload, kind, precision, spend):
        return overhead + SPEED * flops_per_token(workload.network) * workload.batch_size * workload.context

    monkeypatch.setattr(dial, "step_seconds", measured)
    found, choice = chosen(Budget(seconds=seconds), **given)
    assert choice.values["data"]["batch_size"] == batch
    width, steps = choice.values["model"]["network"]["d_model"], choice.values["trainer"]["max_steps"]
    if batch > 4:
        _, small = chosen(Budget(seconds=seconds), data__batch_size=4)
        assert steps >= 1000
        assert found.law.loss(choice.parameters, choice.tokens) < found.law.loss(small.parameters, small.tokens)
    usual = grid.learning_rate(min(width, candidates.WIDEST), steps)
    assert choice.values["model"]["optimizer"]["lr"] == pytest.approx(usual * math.sqrt(batch / 4))


def test_beyond_the_widths_of_the_law_the_learning_rate_follows_from_mup():
    found, _ = chosen(Budget(flops=2e10))
    wide = found.runs.network(2 * candidates.WIDEST)
    assert wide.mup_base_width == candidates.WIDEST and wide.head_dim == found.runs.network(candidates.WIDEST).head_dim
    assert found.runs.optimizer(2 * candidates.WIDEST).lr == found.runs.optimizer(candidates.WIDEST).lr
    assert found.runs.network(candidates.WIDEST).mup_base_width is None


# --- the command


@pytest.fixture
def fit(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinylm"])
    monkeypatch.delenv(RUN_FOLDER, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        code = run_command("fit", [*words])
        monkeypatch.delenv(RUN_FOLDER, raising=False)
        return code, *capfd.readouterr()

    return call


def test_the_config_is_written_run_and_resumed_by_its_own_config(fit):
    code, _, err = fit("-c", "auto", "--budget", "2e9flops", "--run.sample_tokens", "0")
    assert code == 0, err
    assert re.search(r"auto: width \d+, 2 layers, [\d,]+ parameters; \d+ steps of 4 x 128 tokens", err)
    assert re.search(
        r"auto: expected: validation loss [\d.]+ \([\d.]+ to [\d.]+\), [\d.]+% above the best possible", err
    )
    text = Path("auto.yaml").read_text()
    assert text.startswith("# Chosen by tinylm fit -c auto --budget 2e9flops, on ")
    values, ran = yaml.safe_load(text), yaml.safe_load(Path("runs/auto/config.yaml").read_text())
    assert ran["trainer"]["max_steps"] == values["trainer"]["max_steps"]
    assert ran["model"]["network"]["d_model"] == values["model"]["network"]["d_model"]
    assert values["run"] == {"sample_tokens": 0}
    before = Path("auto.yaml").read_bytes()
    code, _, err = fit("-c", "auto", "--budget", "2e9flops", "--resume")
    assert code == 0 and "auto: width" not in err and "resuming runs/auto from step" in err
    assert Path("auto.yaml").read_bytes() == before and not Path("auto-2.yaml").exists()


def test_an_existing_file_is_kept_and_print_config_writes_none(fit, capfd):
    Path("auto.yaml").write_text("mine")
    assert resolve(["-c", "auto", "--budget", "1e9flops"])[1] == "auto-2.yaml"
    assert Path("auto.yaml").read_text() == "mine"
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit, match="0"):  # as the parser ends after printing
        fit("-c", "auto", "--budget=1e9flops", "--print_config")
    assert yaml.safe_load(capfd.readouterr().out)["data"]["corpus"] == "stories:8000"
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("-c auto", "-c auto: needs a budget, as in --budget 10min, --budget 1e15flops or --params 2M"),
        ("-c auto --budget", "--budget: its value is missing"),
        ("-c tiny --budget 10min", "--budget: works with -c auto only, as in -c auto --budget 10min"),
        ("--params 2M", "--params: works with -c auto only"),
        ("-c auto --budget 10min --params 2M", "--budget and --params: give one of the two"),
        ("-c auto --budget soon", "--budget must be a time or a number of operations"),
        ("-c auto --budget 1min --trainer.max_steps 5", "trainer.max_steps: -c auto chooses it by --budget"),
        ("-c auto --budget 1min --model.init_from x", "model.init_from: does not work with -c auto: a base model has"),
        ("-c auto --budget 1min --trainer.devices 2", "trainer.devices: -c auto measures one device; leave it out"),
        ("-c auto --budget 1min --data.pairs x.jsonl", "data.pairs: does not work with -c auto: pairs are for"),
        ("-c auto --budget 1min --model.lora.rank 4", "model.lora: does not work with -c auto"),
        ("-c auto --budget 1min --model.network.n_layer 4", "model.network.n_layer: no such option, did you mean"),
        ("-c auto --budget 1min -c typo", "typo: no such config file"),
        ("-c auto --budget 1min --model.class_path mine.Net", "model.class_path: does not work with -c auto"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(fit, words, problem):
    code, out, err = fit(*words.split())
    assert code in (2, 66) and out == "" and problem in err.splitlines()[-1], err
    assert not list(Path().iterdir())


def test_launched_processes_do_not_choose_each_for_itself(fit, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    code, _, err = fit("-c", "auto", "--budget", "1min")
    assert code == 2 and "-c auto: chooses before processes are launched; run it alone, then launch auto.yaml" in err
