"""A metric against settings: made-up runs, with means and deviations computed by hand."""

import numpy as np
import pytest

from tests.runs.test_compare import make_run
from tinylm.errors import ConfigError, DataError
from tinylm.runs.sweep import Line, Point, Sweep, read_sweep, take_of
from tinylm.runs.sweep_plots import draw_lines, draw_maps, is_geometric, ordered


@pytest.fixture
def runs(tmp_path):
    """Two widths at three learning rates; three seeds of the last rate, at width 16; one run is unfinished."""
    made = [
        make_run(tmp_path / f"w{width}-{lr}", loss, model__optimizer={"lr": lr}, model__network__d_model=width)
        for width, losses in ((16, (2.5, 2.0)), (32, (2.4, 1.75, 1.5)))
        for lr, loss in zip((0.003, 0.01, 0.03), losses, strict=False)
    ]
    made += [
        make_run(tmp_path / f"s{seed}", loss, model__optimizer={"lr": 0.03}, seed_everything=seed)
        for seed, loss in enumerate((1.0, 2.0, 2.4))
    ]
    return [*made, make_run(tmp_path / "half", finished=False)]


def test_points_are_means_over_seeds_with_sample_deviations(runs, tmp_path):
    sweep = read_sweep(runs, ["lr"], "val/loss")
    assert (sweep.names, sweep.metric) == (("lr",), "lowest val/loss")
    assert sweep.left_out == [f"{tmp_path / 'half'}: is unfinished; left out"]
    assert [line.label for line in sweep.lines] == ["width 16", "width 32"]
    first, second = ({point.at[0]: point for point in line.points} for line in sweep.lines)
    assert first[0.003] == Point((0.003,), 2.5, None, 1)
    assert second == {lr: Point((lr,), loss, None, 1) for lr, loss in ((0.003, 2.4), (0.01, 1.75), (0.03, 1.5))}
    assert first[0.03].mean == pytest.approx(1.8) and first[0.03].runs == 3
    assert first[0.03].deviation == pytest.approx(((0.8**2 + 0.2**2 + 0.6**2) / 2) ** 0.5)
    every = read_sweep(runs, ["model.optimizer.lr"], "val/loss", "last", join=False)
    assert every.metric == "last val/loss" and {point.mean for point in every.lines[0].points} == {2.75}
    assert len(every.lines[0].points) == 5


def test_bars_are_one_deviation_to_each_side_and_single_runs_have_none(runs):
    figure = draw_lines(read_sweep(runs, ["lr"], "val/loss"), title="a title")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_title()) == ("log", "linear", "a title")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.003", "0.01", "0.03"]
    points, *_ = (container.lines[0] for container in axes.containers)
    np.testing.assert_allclose(points.get_xydata(), [(0.003, 2.5), (0.01, 2.0), (0.03, 1.8)])
    bars = axes.containers[0].lines[2][0].get_segments()
    deviation = (1.04 / 2) ** 0.5
    np.testing.assert_allclose(bars[2], [(0.03, 1.8 - deviation), (0.03, 1.8 + deviation)])
    np.testing.assert_allclose(bars[0], [(0.003, 2.5), (0.003, 2.5)])
    assert len(axes.containers[1].lines[2]) == 0  # single runs alone
    linear = draw_lines(read_sweep(runs, ["lr"], "val/loss"), log=["none"]).axes[0]
    assert linear.get_xscale() == "linear"


def test_values_that_are_no_numbers_are_categories_side_by_side():
    lines = [Line(name, [Point((value,), n + 0.5, 0.1, 2) for n, value in enumerate(("relu", "gelu", None))])
             for name in ("lr 1", "lr 2")]  # fmt: skip
    (axes,) = draw_lines(Sweep(("activation",), "lowest val/loss", lines, [])).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["relu", "gelu", "none"]
    first, second = (container.lines[0].get_xydata()[:, 0] for container in axes.containers)
    np.testing.assert_allclose((first + second) / 2, [0, 1, 2])
    assert (first < second).all()
    assert ordered([3, "a", 1, None, 1.0, True]) == [1, 3, "a", None, True]


def test_heat_maps_write_the_value_into_each_cell_and_leave_others_empty(runs):
    figure = draw_maps(read_sweep(runs[:2] + runs[3:], ["lr", "width"], "val/loss"))
    axes, colors = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), colors.get_ylabel()) == ("lr", "width", "lowest val/loss")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.003", "0.01", "0.03"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["16", "32"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "2.500", (1, 0): "2.000", (2, 0): "1.800\n±0.721", (1, 1): "1.750", (2, 1): "1.500"}
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), [[2.5, 2, 1.8], [np.nan, 1.75, 1.5]])


def test_what_is_on_no_axis_has_a_heat_map_each(runs, tmp_path):
    larger = make_run(tmp_path / "larger", 1.25, data__batch_size=8, model__optimizer={"lr": 0.01})
    figure = draw_maps(read_sweep([*runs, larger], ["lr", "width"], "val/loss"), title="both")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["batch 4", "batch 8"]
    assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim() == (1.25, 2.5)
    many = Sweep(("a", "b"), "m", [Line(str(n), [Point((1, 2), 1.0, None, 1)]) for n in range(7)], [])
    with pytest.raises(ConfigError, match="7 heat maps, at most 6 fit"):
        draw_maps(many)


def test_runs_without_the_metric_are_named_and_none_at_all_is_an_error(runs, tmp_path):
    (runs[0] / "metrics.csv").write_text("step,train/loss\n30,2\n")
    assert f"{runs[0]}: has no val/loss; left out" in read_sweep(runs, ["lr"], "val/loss").left_out
    with pytest.raises(DataError, match=r"--y val/los: no finished run has this metric, did you mean 'val/loss'\?"):
        read_sweep(runs, ["lr"], "val/los")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("data.batch_size", "all 8 runs have 4; they differ in model.optimizer.lr, model.network.d_model"),
        ("lrr", "no run has this entry in its config; the runs differ in model.optimizer.lr"),
        ("model.network.d_modell", "no run has this entry in its config, did you mean 'model.network.d_model'?"),
    ],
)
def test_an_entry_that_tells_nothing_apart_is_refused(runs, entry, message):
    with pytest.raises(ConfigError) as error:
        read_sweep(runs, [entry], "val/loss")
    assert f"--x {entry}: {message}" in str(error.value)


def test_a_seed_may_be_an_axis_of_its_own(runs):
    sweep = read_sweep(runs[5:], ["seed"], "val/loss")
    assert [(point.at[0], point.runs) for line in sweep.lines for point in line.points] == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("metric", "take"),
    [("val/loss", "lowest"), ("val/loss_mine", "lowest"), ("val/bpb", "lowest"), ("val/accuracy", "highest"),
     ("train/grad_norm", "last"), ("perf/tokens_per_sec", "last"), ("lr", "last")],
)  # fmt: skip
def test_which_value_of_a_run_is_taken(metric, take):
    assert take_of(metric) == take


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.003, 0.01, 0.03], True), ([1, 2, 4, 8], True), ([1e-4, 1e-2], True), ([32, 64, 96], False),
     ([100, 200, 300, 500], False), ([1, 2], False), ([0, 1, 10], False), ([5], False)],
)  # fmt: skip
def test_axes_are_logarithmic_where_values_are_spaced_by_ratio(values, expected):
    assert is_geometric(values) is expected
