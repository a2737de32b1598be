"""Curves of synthetic runs, computed by hand, and their plots."""

from dataclasses import replace

import numpy as np
import pytest

from tests.runs.test_compare import NETWORK, make_run
from tinylm.errors import DataError
from tinylm.model import ModelConfig, flops_per_token
from tinylm.runs.axes import log_ticks
from tinylm.runs.curves import read_curves, smoothed
from tinylm.runs.metrics import read_samples
from tinylm.runs.plots import Curves, figure_of, find_panel, looks


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("steps", [10, 20, 30]),
        ("tokens", [320, 640, 960]),  # 4 x 8 a step
        ("time", [5, 15, 20]),  # 320 tokens at 64, 32 and 64 tokens/s
        ("flops", [320, 640, 960] * np.array(flops_per_token(ModelConfig(**NETWORK, vocab_size=20)))),
    ],
)
def test_what_curves_are_drawn_against(axis, expected, tmp_path):
    ((run,), _) = read_curves([make_run(tmp_path / "one")], axis)
    x, losses = run.columns["train/loss"]
    np.testing.assert_allclose(x, expected)
    assert losses.tolist() == [3.0, 2.5, 2.25]
    np.testing.assert_allclose(run.columns["val/loss"][0], expected[1:])


def test_runs_of_other_seeds_are_their_mean_and_spread(tmp_path):
    folders = [make_run(tmp_path / name, loss, seed_everything=seed) for name, loss, seed in
               (("a", 2.0, 1), ("b", 3.0, 2), ("c", 7.0, 3))]  # fmt: skip
    other = make_run(tmp_path / "other", model__optimizer={"lr": 0.02})
    (mean, alone), remarks = read_curves([*folders, other])
    assert (mean.label, alone.label, remarks) == ("lr 0.01 (mean of 3)", "lr 0.02", [])
    assert mean.columns["val/loss"][1].tolist() == [4.0, 2.75]  # (2 + 3 + 7) / 3
    np.testing.assert_allclose(mean.spread["val/loss"], [7**0.5, 0.0])  # (4 + 1 + 9) / 2
    each, _ = read_curves([*folders, other], join_seeds=False)
    assert [run.label for run in each] == ["lr 0.01 (a)", "lr 0.01 (b)", "lr 0.01 (c)", "lr 0.02"]


def test_a_run_without_a_row_is_refused(tmp_path):
    folder = make_run(tmp_path / "one")
    (folder / "metrics.csv").write_text("step,train/loss\n")
    with pytest.raises(DataError, match="has no rows yet"):
        read_curves([folder])
    (folder / "metrics.csv").unlink()
    with pytest.raises(DataError, match=r"has no metrics\.csv"):
        read_curves([folder])


def test_runs_with_rows_at_other_steps_meet_at_those_that_they_share(tmp_path):
    folders = [make_run(tmp_path / name, seed_everything=seed) for name, seed in (("a", 1), ("b", 2))]
    (folders[1] / "metrics.csv").write_text("step,train/loss,val/loss\n10,5,\n15,100,9\n30,7,\n")
    ((mean,), _) = read_curves(folders)
    steps, losses = mean.columns["train/loss"]
    assert (steps.tolist(), losses.tolist()) == ([10, 30], [(3 + 5) / 2, (2.25 + 7) / 2])


def test_what_runs_measured_at_no_step_together_is_left_out(tmp_path):
    folders = [make_run(tmp_path / name, seed_everything=seed) for name, seed in (("a", 1), ("b", 2))]
    (folders[1] / "metrics.csv").write_text("step,train/loss,val/loss\n10,5,\n15,,100\n")
    ((mean,), _) = read_curves(folders)
    assert mean.columns.keys() == {"train/loss"} and "val/loss" in mean.partial


def test_a_run_that_was_not_finished_is_no_seed_of_the_others(tmp_path):
    first, second = make_run(tmp_path / "a", seed_everything=1), make_run(tmp_path / "b", seed_everything=2)
    broken = make_run(tmp_path / "c", seed_everything=3, finished=False)
    (mean, alone), (remark,) = read_curves([first, second, broken])
    assert (mean.label, alone.label) == ("a (mean of 2)", "c")
    assert remark == f"{broken}: is unfinished; not averaged with the other runs of its settings"
    assert alone.columns["train/loss"][0].tolist() == mean.columns["train/loss"][0].tolist() == [10, 20, 30]


def test_each_run_is_smoothed_and_then_they_are_averaged_and_the_learning_rate_stays(tmp_path):
    folders = [make_run(tmp_path / name, seed_everything=seed) for name, seed in (("a", 1), ("b", 2))]
    for folder, sign in zip(folders, (1, -1), strict=True):
        lines = [f"{step},{3 + sign * (-1) ** step},{1 / step}" for step in range(1, 9)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,lr", *lines, ""]))
    ((mean,), _) = read_curves(folders, smooth=0.5)
    assert mean.columns["lr"][1].tolist() == pytest.approx([1 / step for step in range(1, 9)])
    one = smoothed(np.array([3 + (-1.0) ** step for step in range(1, 9)]), 0.5)
    np.testing.assert_allclose(mean.columns["train/loss"][1], 3)
    np.testing.assert_allclose(mean.spread["train/loss"], 2**0.5 * abs(one - 3))  # of two numbers, 3 + d and 3 - d


def test_many_names_stand_beside_the_picture():
    x = np.array([1.0, 2.0])
    runs = [Curves(f"run$_{number}$", {"val/loss": (x, x), "val/bpb": (x, x)}) for number in range(9)]
    few, many = figure_of(runs[:3], panels=["loss"]), figure_of(runs, panels=["loss", "bpb"])
    assert few.axes[0].get_legend() and not few.legends
    assert not many.axes[0].get_legend() and len(many.legends[0].get_texts()) == 9
    assert many.legends[0].get_texts()[0].get_text() == r"run\$_0\$  2.000"  # no mathematics
    assert len({(line.get_color(), line.get_linestyle()) for line in many.axes[0].lines}) == 9


def test_series_stay_apart_and_those_of_two_settings_have_a_color_and_a_style_each():
    for labels in ([f"run {n}" for n in range(28)], [f"a {n}, b {m}, c 0" for n in range(7) for m in range(4)]):
        assert len({(look["color"], look["linestyle"]) for look in looks(labels)}) == 28
    labels = [f"lr {lr}, width {width} (mean of 3)" for lr in (1, 2, 3) for width in (32, 64, 96)]
    found = looks(labels)
    assert [len({each["color"] for each in found[3 * n : 3 * n + 3]}) for n in range(3)] == [1, 1, 1]
    for name, of_width in (("color", 3), ("linestyle", 1), ("marker", 1)):
        assert len({each[name] for each in found[::3]}) == of_width
    assert len({each["marker"] for each in looks(labels[:7])}) == 7  # few: a color each


def test_any_column_and_the_columns_of_a_kind_are_panels():
    x = np.array([1.0, 2.0])
    names = ["gradients/embedding", "gradients/blocks.0.attention", "activations/blocks.0.units.std",
             "activations/blocks.1.units.std", "activations/blocks.1.units.dead", "val/mine"]  # fmt: skip
    run = Curves("one", {name: (x, x * n) for n, name in enumerate(names)})
    panels = ["gradients", "activations/*.std", "val/mine", "activations/blocks.1.units.dead"]
    figure = figure_of([run], panels=panels)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1, 1]
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2]]
    assert labels == [["embedding  0.000", "blocks.0.attention  2.000"], ["blocks.0  4.000", "blocks.1  6.000"]]
    both = figure_of([run, replace(run, label="two")], panels=["activations/*.std"]).axes[0].get_legend()
    assert [text.get_text().partition("  ")[0] for text in both.get_texts()] == [
        f"{name}, blocks.{layer}" for name in ("one", "two") for layer in (0, 1)
    ]
    assert find_panel("gradient", names) is None and find_panel("loss", names) is None


def test_smoothing_is_the_weighted_mean_of_all_points_before():
    values = np.random.default_rng(0).normal(size=50)
    for keep in (0.0, 0.3, 0.9):
        weights = [keep ** np.arange(n, -1, -1.0) for n in range(50)]
        expected = [np.average(values[: n + 1], weights=w) for n, w in enumerate(weights)]
        np.testing.assert_allclose(smoothed(values, keep), expected)


def test_a_dense_start_counts_as_much_as_one_point_for_its_steps():
    """Five equal values, ten steps apart, are one value of fifty steps."""
    steps, values = np.array([50, 100, 150, 200, 250]), np.array([7.0, 3.0, 2.0, 1.5, 1.25])
    dense = np.array([10, 20, 30, 40, *steps])
    found = smoothed(np.array([7.0] * 4 + [*values]), 0.9, dense)
    np.testing.assert_allclose(found[4:], smoothed(values, 0.9, steps), rtol=1e-12)
    np.testing.assert_allclose(smoothed(values, 0.9, steps), smoothed(values, 0.9), rtol=1e-12)  # equal distances


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (1, 800, 9, [1, 2, 5, 10, 20, 50, 100, 200, 500]),
        (1, 800, 6, [1, 3, 10, 30, 100, 300]),
        (1, 800, 4, [1, 10, 100]),
        (2e9, 6e11, 4, [1e10, 1e11]),
        (1e3, 2e12, 4, [1e3, 1e6, 1e9, 1e12]),
        (1.3e11, 5e11, 4, [2e11, 3e11, 4e11, 5e11]),  # less than a decade: evenly spaced
    ],
)
def test_logarithmic_axes_have_few_round_ticks(low, high, most, expected):
    assert log_ticks(low, high, most) == pytest.approx(expected)


def test_a_run_alone_is_drawn_with_the_words_of_its_samples(tmp_path):
    text = "=== step 2\nOnce upon a time $x$\n\n=== step 2\nsecond prompt\n\n=== step 30\nOnce upon\n=== a lamp\n\n"
    (tmp_path / "samples.txt").write_text(text)
    samples = read_samples(tmp_path / "samples.txt")
    assert samples == [(2, "Once upon a time $x$"), (30, "Once upon\n=== a lamp")]
    assert read_samples(tmp_path / "no.txt") == []
    x = np.array([1.0, 30.0])
    curve = Curves("", {"train/loss": (x, x), "val/loss": (x, x), "val/floor": (x, x)})
    loss, words = figure_of([curve], panels=["loss"], samples=samples).axes
    written = [each.get_text() for each in words.texts]
    assert written == ["step 2", r"… a time \$x\$", "step 30", "… === a lamp"]  # without the words that both share
    assert [line.get_xdata()[0] for line in loss.lines[-2:]] == [2, 30]
    labels = [each.get_text() for each in loss.get_legend().get_texts()]
    assert labels == ["training", "validation  30.000", "best possible  30.000"]


def test_the_picture_has_the_runs_their_spread_and_the_floor():
    x = np.array([1.0, 2.0, 3.0])
    columns = {"train/loss": (x, x), "val/loss": (x, 2 * x), "val/floor": (x, np.full(3, 0.5)), "lr": (x, x)}
    one = Curves("one", columns)
    many = Curves("many", columns, {"val/loss": np.array([0.1, 0.2, 0.3])})
    figure = figure_of([one, many], title="both", axis="tokens", panels=["loss", "lr"], log=["x", "y"])
    loss, rate = figure.axes
    assert (loss.get_title(), loss.get_xlabel(), rate.get_title()) == ("both", "tokens", "learning rate")
    assert (loss.get_xscale(), loss.get_yscale(), rate.get_yscale()) == ("log", "log", "log")
    drawn = [line.get_ydata() for line in loss.lines]
    assert [list(y) for y in drawn] == [[1, 2, 3], [2, 4, 6], [1, 2, 3], [2, 4, 6], [0.5, 0.5], []]
    assert len({line.get_color() for line in loss.lines}) == 4  # of the runs, the floor, and the key to training
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["one  6.000", "many  6.000", "best possible  0.500", "thin, without markers: training"]
    (band,) = loss.collections
    corners = {(float(a), round(float(b), 6)) for a, b in band.get_paths()[0].vertices}
    assert {(1.0, 1.9), (1.0, 2.1), (3.0, 5.7), (3.0, 6.3)} <= corners
