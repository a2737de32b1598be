"""The helper that finds crowded texts finds them, and only them."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.boxes import crowded_texts


def faults_of(change) -> list[str]:
    figure = Figure(figsize=(4, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    change(figure, axes)
    with crowded_texts() as faults:
        figure.canvas.draw()
    return faults


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda figure, axes: None, []),
        (lambda figure, axes: axes.text(0.5, 0.5, "one") and axes.text(0.52, 0.5, "two"), ["'one' overlaps 'two'"]),
        (lambda figure, axes: axes.text(0.5, 0.5, "one") and axes.text(0.7, 0.5, "two"), []),
        (lambda figure, axes: figure.text(0.98, 0.5, "beyond"), ["'beyond' leaves the figure"]),
        (lambda figure, axes: axes.text(0.5, 0.5, "one") and axes.text(0.5, 0.5, "two", visible=False), []),
        (lambda figure, axes: axes.set_xticks([0.5, 0.51], ["left", "right"]), ["'left' overlaps 'right'"]),
        (lambda figure, axes: axes.set_xticks([0.5, 0.51], ["left", "right"]) and axes.set_axis_off(), []),
        (lambda figure, axes: axes.plot([0, 1]) and axes.text(0, 0.97, "in the way") and axes.legend("a", loc=2),
         ["'in the way' overlaps 'a'"]),
        # slanted labels, whose upright boxes overlap
        (lambda figure, axes: axes.set_xticks([0.2, 0.5], ["a long label", "another one"], rotation=30), []),
        (lambda figure, axes: axes.set_xticks([0.2, 0.21], ["a long label", "another one"], rotation=30),
         ["'a long label' overlaps 'another one'"]),
    ],
)  # fmt: skip
def test_crowded_texts_are_found(change, expected):
    assert faults_of(change) == expected
