"""`tinylm scaling`: its runs are those of `fit`, it goes on after an interruption, and it predicts before it trains."""

import json
import math
from collections import Counter
from dataclasses import replace

import lightning.pytorch as pl
import pytest

from tinylm.commands import run_command
from tinylm.commands.scaling import parse
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError, DataError
from tinylm.experiments import grid, law, scaling, scaling_report
from tinylm.experiments.fit import Constants
from tinylm.experiments.grid import Point, Result, network, plan, read_results, run_missing
from tinylm.experiments.law import Law
from tinylm.experiments.plain_run import Texts, measure
from tinylm.experiments.scaling import Study, fit_results, predict
from tinylm.model.size import flops_per_token, parameter_count
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig
from tinylm.training import LitTransformerLM

TRUE = Constants(floor=0.85, size_factor=200.0, size_power=0.6, data_factor=3000.0, data_power=0.7)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A few hundred stories, encoded once."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLM_CACHE", str(cache))
        texts = Texts("stories:400", "char", context=32, batch_size=2, val_tokens=300)
        assert texts.data.floors
        yield texts


@pytest.fixture
def invented(monkeypatch):
    """Runs whose loss is that of a known law, without training; their points in the order in which they were done."""
    done = []

    def run_point(point: Point, texts: Texts) -> Result:
        done.append(point)
        params, tokens = point.params(texts), point.tokens(texts)
        excess = (TRUE.loss(params, tokens) - TRUE.floor) * math.exp(0.002 * math.sin(7.0 * len(done)))
        return Result(**point._asdict(), params=params, tokens=tokens, flops=point.budget, lr=0.01, text=texts.name,
                      loss=TRUE.floor + excess, floor=TRUE.floor, seconds=1.0)  # fmt: skip

    monkeypatch.setattr(grid, "run_point", run_point)
    monkeypatch.setattr(scaling, "SAMPLES", 20)
    monkeypatch.setattr(scaling, "FREE_SAMPLES", 3)
    return done


def study(texts: Texts) -> Study:
    budgets = [2e10, 8e10, 3.2e11]
    return Study(
        texts,
        [16, 32, 48, 64, 96],
        budgets,
        [1.2e11],
        [2],
        [1.2e12],
        seed=1,
        seeds=2,
        steps=(1, 10**9),
        plateau=100.0,
    )


def test_a_plain_run_is_a_run_of_the_trainer(texts):
    size, steps = network(8, texts.data.vocab_size, 32), 4
    optimizer = OptimizerConfig(name="muon", lr=0.02, weight_decay=0.1)
    schedule = ScheduleConfig(name="linear", warmup_steps=2, min_lr=0.0)
    found = measure(texts, size, optimizer, schedule, steps, seed=3)
    pl.seed_everything(3, verbose=False)
    module = LitTransformerLM(size, optimizer, schedule)
    data = TextDataModule("stories:400", "char", max_seq_len=32, batch_size=2, split=(0.96, 0.02, 0.02), seed=1)
    silent = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        **silent,
    )
    data.max_val_tokens = 300
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(found.loss, abs=2e-6)
    assert trainer.callback_metrics["val/floor"].item() == pytest.approx(found.floor, abs=1e-6)


def test_an_interrupted_grid_goes_on_with_the_run_that_was_not_finished(texts, tmp_path, monkeypatch):
    points = plan([8, 16], [1e7, 2e7], texts, seed=1, steps=(1, 100))
    assert len(points) == 4
    whole, broken, trained = tmp_path / "whole", tmp_path / "broken", []
    whole.mkdir(), broken.mkdir()
    expected = run_missing(points, texts, whole)
    real = grid.run_point

    def killed(point: Point, texts: Texts) -> Result:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(point)
        return real(point, texts)

    monkeypatch.setattr(grid, "run_point", killed)
    with pytest.raises(KeyboardInterrupt):
        run_missing(points, texts, broken)
    path = broken / grid.RESULTS
    with path.open("a") as file:
        file.write('{"width": 8, "bud')  # of a process killed while it wrote
    trained.clear()
    found = run_missing(points, texts, broken)
    assert trained == points[2:] and len(path.read_text().splitlines()) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.loss == other.loss and one.point == other.point


def test_a_run_spends_its_budget_but_for_less_than_a_step(texts):
    for point in plan([8, 24, 64], [1e9, 3e9], texts, seed=1, steps=(1, 10**9)):
        spent, step = flops_per_token(point.network(texts)) * point.tokens(texts), texts.batch_size * texts.context
        assert 0 <= point.budget - spent < flops_per_token(point.network(texts)) * step
        assert point.params(texts) == parameter_count(point.network(texts))
    assert [each.steps for each in plan([8], [1e9], texts, 1, (1, 5))] == []


def test_a_study_predicts_before_it_trains_and_recovers_the_law(texts, tmp_path, invented):
    found = scaling.measure(study(texts), tmp_path)
    assert found.fitted.law.constants.size_power == pytest.approx(TRUE.size_power, abs=0.05)
    assert found.fitted.free.floor == pytest.approx(TRUE.floor, rel=0.02)
    written = json.loads((tmp_path / scaling.PREDICTIONS).read_text())
    assert [*written] == ["1.2e+11", "1.2e+12"]
    before = len(study(texts).fitted_points())
    assert {point.budget for point in invented[:before]} == {2e10, 8e10, 3.2e11}  # the others came after the fit
    report = scaling_report.write_report(study(texts), *found, tmp_path)
    for check in report["checks"].values():
        assert abs(check["error"]) < 0.015 and check["low"] < check["measured"] < check["high"]
        assert 0 <= check["above_best"] < 0.02
    assert json.loads((tmp_path / "scaling.json").read_text()) == json.loads(json.dumps(report))
    assert (tmp_path / "scaling.md").read_text().count("| 1.2e+11 |") == 11  # ten runs and their prediction
    count = len(invented)
    again = scaling.measure(study(texts), tmp_path)
    assert len(invented) == count and again.predictions == written  # nothing is trained twice, nothing rewritten


def test_the_best_size_is_the_minimum_of_the_law_at_its_cost():
    known = Law(TRUE, [TRUE], [-0.1, 0.1], vocab_size=1488, context=128, layers=2)
    for flops in (1e11, 1e13):
        best = known.best(flops)
        assert known.flops(best.params, best.tokens) == pytest.approx(flops, rel=1e-6)
        for factor in (0.8, 1.25):
            params = factor * best.params
            assert known.loss(params, flops / known.flops(params, 1.0)) > best.expected.loss
        excess = best.expected.loss - TRUE.floor  # of one sample only the residuals are left
        assert best.expected.high - TRUE.floor == pytest.approx(excess * math.exp(0.1), rel=0.02)
    # without attention's products N* grows as C^(b / (a + b))
    power = math.log(known.best(1e15).params / known.best(1e14).params, 10)
    assert power == pytest.approx(0.7 / 1.3, abs=0.03)


def test_a_law_is_read_as_it_was_written_and_other_files_are_refused(tmp_path):
    known = Law(TRUE, [TRUE], [-0.1, 0.1], vocab_size=1488, context=128, layers=2)
    assert Law.from_dict(json.loads(json.dumps(known.to_dict())), "here").to_dict() == known.to_dict()
    (tmp_path / "law.json").write_text("{}")
    with pytest.raises(DataError, match=r"law\.json: is not a report of `tinylm scaling`; take its scaling\.json"):
        law.load(tmp_path / "law.json")


def test_the_law_of_the_stories_has_the_entropy_of_the_stories_as_its_floor():
    found = law.load()
    assert found.constants.floor == pytest.approx(0.845, abs=0.01)
    assert {each.floor for each in found.samples} == {found.constants.floor}
    best = found.best(1e12)
    assert 5e4 < best.params < 1e6 and best.expected.low < best.expected.loss < best.expected.high


def test_a_text_of_unknown_entropy_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("some words " * 2000)
    texts = Texts(str(tmp_path / "text.txt"), "char", context=8, batch_size=2, val_tokens=10)
    with pytest.raises(ConfigError, match=r"text\.txt: its entropy is unknown; use stories, or a \*\.grammar\.yaml"):
        _ = texts.data


def test_results_of_other_texts_are_not_mixed(texts, tmp_path, invented):
    points = plan([16, 32], [2e10], texts, 1, (1, 10**9))
    run_missing(points, texts, tmp_path)
    other = Texts("stories:400", "char", context=32, batch_size=2, val_tokens=301)
    run_missing(points, other, tmp_path)
    assert len(invented) == 4 and len({each.text for each in read_results(tmp_path / grid.RESULTS)}) == 2
    (tmp_path / grid.RESULTS).write_text('{"loss": 1.0}\n')
    with pytest.raises(DataError, match=r"results\.jsonl: line 1: is not a result of `tinylm scaling`"):
        read_results(tmp_path / grid.RESULTS)


def test_a_prediction_written_before_is_kept_when_the_law_changes(texts, tmp_path, invented):
    results = run_missing(study(texts).fitted_points(), texts, tmp_path)
    fitted = fit_results(results, study(texts))
    first = predict(fitted, study(texts), tmp_path)
    changed = fit_results([*results[1:], results[-1]], study(texts))
    assert predict(changed, study(texts), tmp_path) == first


def test_a_numeric_error_names_the_step(texts):
    size = network(8, texts.data.vocab_size, 32)
    with pytest.raises(ArithmeticError, match=r"step 2: the (loss|gradient norm) is nan"):
        measure(texts, size, OptimizerConfig(name="sgd", lr=1e30), ScheduleConfig(name="constant", warmup_steps=0), 5)


SMALL = [
    *("--corpus", "stories:400", "--tokenizer", "char", "--context", "32", "--batch-size", "2", "--widths", "8", "16"),
    *("--budgets", "1e7", "2e7", "4e7", "--held-out", "3e7", "--largest", "6e7", "--steps", "1", "1000"),
    *("--plateau", "100", "--val-tokens", "300", "--seeds", "1"),
]


@pytest.mark.slow
def test_the_command_goes_on_and_ends_with_the_report_of_the_first_time(texts, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(scaling, "SAMPLES", 3)
    monkeypatch.setattr(scaling, "FREE_SAMPLES", 2)
    words = [*SMALL, "--out", str(tmp_path / "study")]
    assert run_command("scaling", words) == 0
    first = capfd.readouterr()
    report = (tmp_path / "study" / "scaling.json").read_text()
    assert first.err.count("% above the floor") == 9 and first.out.count("e+07") == 2
    assert law.load(tmp_path / "study" / "scaling.json").layers == 2
    assert len(law.load_results(tmp_path / "study" / "scaling.json")) == 9
    assert run_command("scaling", words) == 0
    again = capfd.readouterr()
    assert again.out == first.out and again.err.count("% above the floor") == 0
    assert (tmp_path / "study" / "scaling.json").read_text() == report
    assert {path.suffix for path in (tmp_path / "study").iterdir()} >= {".png", ".md", ".json", ".jsonl"}


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--widths", "0"], 2, "--widths must be at least 1, got 0"),
        (["--budgets", "-1"], 2, "--budgets must be positive numbers of FLOPs, got -1"),
        (["--held-out", "8e11"], 2, "--held-out 8e+11: is given twice; a budget is either fitted or held out"),
        (["--seeds", "0"], 2, "--seeds must be at least 1, got 0"),
        ([], 73, "OUT: exists and is not a scaling study of tinylm; choose another path, or remove it"),
    ],
)
def test_an_invalid_study_is_refused_before_it_begins(words, code, problem, tmp_path, capfd):
    (tmp_path / "own.txt").write_text("mine")
    assert run_command("scaling", ["--out", str(tmp_path), *words]) == code
    assert capfd.readouterr().err == f"tinylm: error: {problem.replace('OUT', str(tmp_path))}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_each_held_out_budget_may_have_its_own_number_of_seeds(texts):
    options = parse(["--out", "x", "--held-out", "1.2e11", "3e11", "--held-out-seeds", "3", "1"])
    points = replace(study(texts), held_out=options.held_out, held_out_seeds=options.held_out_seeds).held_out_points()
    sizes = len(study(texts).widths)
    assert Counter(point.budget for point in points) == {1.2e11: 3 * sizes, 3e11: sizes}
    assert {point.seed for point in points if point.budget == 3e11} == {1}
    with pytest.raises(ConfigError, match="one for each budget of --held-out, got 3 numbers for 2 budgets"):
        parse(["--out", "x", "--held-out-seeds", "3", "1", "2"])


def test_the_free_floor_of_all_runs_takes_the_median_of_each_size_and_budget():
    results = [
        Result(width=width, params=100 * width, budget=budget, steps=10, tokens=99, flops=budget, lr=0.01, seed=seed,
               text="text", loss=loss, floor=0.8, seconds=1.0)
        for width, budget, seed, loss in ((8, 1e9, 1, 1.0), (8, 1e9, 2, 1.3), (8, 1e9, 3, 1.1), (8, 2e9, 1, 0.9),
                                          (16, 1e9, 1, 1.2), (16, 1e9, 2, 1.4))
    ]  # fmt: skip
    found = {(each.width, each.budget): each.loss for each in scaling_report.medians(results)}
    assert found == {(8, 1e9): 1.1, (8, 2e9): 0.9, (16, 1e9): pytest.approx(1.3)}
