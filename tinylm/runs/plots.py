"""Plots of runs. matplotlib is imported when a plot is drawn."""

import fnmatch
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, product, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinylm.files import atomic_write
from tinylm.runs.axes import add_legend, plain, scale_axis, tidy
from tinylm.runs.metrics import read_metrics, read_samples
from tinylm.runs.style import COLORS, GREEN, GREY, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS, STYLES = ("o", "s", "^", "D", "v", "P", "X", "<", "*"), ("-", "--", ":", "-.")
SUFFIXES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 130
ACROSS, SAMPLES, LETTERS = 3, 5, 76
"""Small panels in a row; most samples below a curve; most letters of a sample."""


class Panel(NamedTuple):
    """One panel of a plot: its label and the metrics that it shows."""

    label: str
    training: str = ""
    validation: str = ""
    floor: str = ""
    family: tuple[str, ...] = ()
    """Metrics of one kind, such as those of all layers, one line each."""


PANELS = {
    "loss": Panel("loss (nats per token)", "train/loss", "val/loss", "val/floor"),
    "perplexity": Panel("validation perplexity", "", "val/perplexity"),
    "accuracy": Panel("validation accuracy", "", "val/accuracy"),
    "bpb": Panel("bits per byte", "", "val/bpb"),
    "lr": Panel("learning rate", "lr"),
    "grad_norm": Panel("gradient norm", "train/grad_norm"),
    "throughput": Panel("tokens/s", "perf/tokens_per_sec"),
}


@dataclass(frozen=True)
class Curves:
    """The curves of a run, or of the mean of several.

    Attributes:
        label: name in the legend
        columns: x positions and values of each metric
        spread: sample standard deviation of each metric at each point, for a mean of several runs
        partial: metrics that only some of the runs have, and which therefore have no mean
    """

    label: str
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    spread: dict[str, np.ndarray] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()


def find_panel(name: str, columns: Iterable[str]) -> Panel | None:
    """The panel of a name in `PANELS`, a metric, a pattern of metrics, or a kind of them; None if none was measured.

    >>> find_panel("gradients", ["gradients/embedding", "gradients/blocks.0", "lr"])
    Panel(label='gradients', training='', validation='', floor='', family=('gradients/embedding', 'gradients/blocks.0'))
    """
    columns = list(columns)
    if name in PANELS:
        panel = PANELS[name]
        return panel if {panel.training, panel.validation, panel.floor} & {*columns} else None
    if name in columns:
        return Panel(name, validation=name) if name.startswith("val/") else Panel(name, training=name)
    family = tuple(fnmatch.filter(columns, name if "*" in name else f"{name}/*"))
    return Panel(name, family=family) if family else None


def looks(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Color, line style and marker of each series; no two of the first 28 share color and style.

    Many series that differ in two settings, such as `lr 0.01, width 64`, have a color for each value of the first and
    a style for each value of the second.
    """
    parts = [label.partition(" (mean")[0].split(", ") for label in labels]
    first, second = (list(dict.fromkeys(part[place] for part in parts)) for place in (0, -1))
    pairs = [(first.index(part[0]), second.index(part[-1])) for part in parts]
    crossed = len(labels) > len(COLORS) and {len(part) for part in parts} == {2} and len({*pairs}) == len(pairs)
    if not (crossed and len(first) <= len(COLORS) and len(second) <= len(STYLES)):
        pairs = [(number % len(COLORS), number // len(COLORS) % len(STYLES)) for number in range(len(labels))]
    markers = [style if crossed else number for number, (_, style) in enumerate(pairs)]
    return [
        {"color": COLORS[color], "linestyle": STYLES[style], "marker": MARKERS[marker % len(MARKERS)]}
        for (color, style), marker in zip(pairs, markers, strict=True)
    ]


def draw_curves(metrics: str | Path, picture: str | Path, title: str) -> None:
    """Draws loss, learning rate, gradient norm and throughput of a run against its steps, with samples of its text.

    Args:
        metrics: metrics.csv of the run; samples.txt is read beside it
        picture: file to write
        title: title of the plot
    """
    columns = {name: (np.array(steps), np.array(values)) for name, (steps, values) in read_metrics(metrics).items()}
    samples = read_samples(Path(metrics).with_name("samples.txt"))
    draw([Curves("", columns)], [Path(picture)], title=title, log=["x"], samples=samples)


def draw(curves: Sequence[Curves], pictures: Sequence[Path], **options: Any) -> None:
    """Draws several runs into one plot.

    Args:
        curves: one entry per run
        pictures: files to write, of one of `SUFFIXES`
        options: options of `figure_of`
    """
    figure = figure_of(curves, **options)
    for picture in pictures:
        save_figure(figure, picture)


def save_figure(figure: "Figure", picture: str | Path) -> None:
    """Writes a figure atomically, in the format of its suffix, one of `SUFFIXES`; PNG for any other.

    The files are reproducible (no date, fixed ids), and are recognized by targets.py. Their description names the
    panels, for readers who do not see them.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = describe(figure)
    canvas, metadata = {
        ".svg": (FigureCanvasSVG, {"Date": None, "Creator": "tinylm", "Description": text}),
        ".pdf": (FigureCanvasPdf, {"CreationDate": None, "Creator": "tinylm", "Subject": text}),
    }.get(Path(picture).suffix, (FigureCanvasAgg, {"Software": "tinylm", "Description": text}))
    form = canvas.__name__.removeprefix("FigureCanvas").lower().replace("agg", "png")
    with matplotlib.rc_context({"svg.hashsalt": "tinylm", "pdf.fonttype": 42}), atomic_write(picture) as file:
        canvas(figure).print_figure(file, format=form, dpi=DOTS_PER_INCH, metadata=metadata)


def describe(figure: "Figure") -> str:
    """The titles, the labels of the axes and the number of series of each panel, a line each."""
    lines = [figure.get_suptitle()]
    for axes in figure.axes:
        words = [("", axes.get_title()), ("x: ", axes.get_xlabel()), ("y: ", axes.get_ylabel())]
        series = f"{len(axes.lines)} lines" if axes.lines else f"{len(axes.images)} maps" if axes.images else ""
        lines.append("; ".join([*(f"{name}{text}" for name, text in words if text), *([series] if series else [])]))
    return "\n".join(line for line in lines if line)


@style()
def figure_of(
    curves: Sequence[Curves],
    *,
    title: str = "",
    axis: str = "step",
    panels: Sequence[str] = ("loss", "lr", "grad_norm", "throughput"),
    log: Sequence[str] = (),
    samples: Sequence[tuple[int, str]] = (),
) -> Any:
    """Draws several runs into one matplotlib Figure: the first panel large, the others in rows below.

    Training is a thin line, validation a line with markers, the mean of several runs a line in a band of one standard
    deviation to each side. A dashed line marks the loss floor where it is known.

    Args:
        curves: one entry per run
        title: title of the plot
        axis: label of the x axis
        panels: names that `find_panel` knows; one that no run has measured stays empty
        log: logarithmic axes, "x" and "y"
        samples: steps and texts, of which a few words are written below the first panel
    """
    small, samples = panels[1:], _spread(samples)
    rows, across = math.ceil(len(small) / ACROSS), min(len(small), ACROSS) or 1
    heights = [3.4, *([0.2 + 0.17 * len(samples)] if samples else []), *[1.9] * rows]
    figure = new_figure(7, sum(heights) + 0.3)
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    measured = dict.fromkeys(column for each in curves for column in each.columns)
    below = range(len(heights) - rows, len(heights))
    places = [grid[0, :], *(grid[row, column] for row, column in product(below, range(across)))]
    for place, name in zip(places, panels, strict=False):
        axes, first = figure.add_subplot(place), place is places[0]
        panel = find_panel(name, measured) or PANELS[name]
        (_fill_family if panel.family else _fill)(axes, panel, curves)
        axes.set(xlabel=axis, **({"title": plain(title), "ylabel": plain(panel.label)} if first else {}))
        if not first:
            axes.set_title(plain(panel.label), fontsize="medium")
        for letter, along, most in (("x", axes.xaxis, 9 if first else 4), ("y", axes.yaxis, 8 if first else 5)):
            scale_axis(along, most, letter in log)
        if first or panel.family:
            add_legend(figure, axes, small=not first)
        tidy(axes)
    if samples:
        _write_samples(figure.axes[0], figure.add_subplot(grid[1, :]), samples)
    return figure


def _spread(samples: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most `SAMPLES` of the samples: the first, the last, and others evenly between them."""
    if len(samples) <= SAMPLES:
        return list(samples)
    return [samples[round(place * (len(samples) - 1) / (SAMPLES - 1))] for place in range(SAMPLES)]


def _write_samples(curve: Any, place: Any, samples: Sequence[tuple[int, str]]) -> None:
    """Writes the first words of each sample below the curve, without their common beginning, and marks their steps."""
    place.set_axis_off()
    texts = ["".join(letter if letter.isprintable() else " " for letter in text) for _, text in samples]
    shared = sum(1 for _ in takewhile(lambda letters: len({*letters}) == 1, zip(*texts, strict=False)))
    begin = texts[0].rfind(" ", 0, shared) + 1 if len(texts) > 1 else 0
    for row, ((step, _), text) in enumerate(zip(samples, texts, strict=True)):
        curve.axvline(step, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        words = ("… " if begin else "") + textwrap.shorten(text[begin:], LETTERS, placeholder=" …")
        options: dict[str, Any] = {"fontsize": 8, "va": "center", "transform": place.transAxes}
        height = 1 - (row + 0.5) / len(samples)
        place.text(0, height, f"step {step:,}", weight="bold", **options)
        place.text(0.16, height, plain(words), family="monospace", **options)


def _fill(axes: Any, panel: "Panel", curves: Sequence[Curves]) -> None:
    """Draws one panel for all runs. The legend gives the last value of validations: one training loss is noise."""
    both = False
    for each, look in zip(curves, looks([each.label for each in curves]), strict=True):
        color, style, marker = look.values()
        validated = panel.validation in each.columns
        if panel.training in each.columns:
            x, y = each.columns[panel.training]
            both |= bool(each.label) and validated
            label = (None if validated else plain(each.label)) if each.label else "training"
            alpha = 0.55 if each.label and validated else 1.0
            axes.plot(x, y, style, color=color, linewidth=1.0, alpha=alpha, label=label)
            _band(axes, x, y, each.spread.get(panel.training), color)
        if validated:
            x, y = each.columns[panel.validation]
            color, points = color if each.label else ORANGE, {"marker": marker, "markersize": 4}
            axes.plot(x, y, style, color=color, label=_label(each.label or "validation", y), **points)
            _band(axes, x, y, each.spread.get(panel.validation), color)
        if not each.label and panel.validation:  # a single run: its curve for each source of a mixture
            sources = sorted(name for name in each.columns if name.startswith(f"{panel.validation}_"))
            for name, color in zip(sources, cycle(COLORS[2:])):
                x, y = each.columns[name]
                axes.plot(x, y, ":", color=color, label=_label(name, y), marker=".")
    if panel.floor:
        floors = {round(each.columns[panel.floor][1][-1], 6) for each in curves if panel.floor in each.columns}
        for floor in sorted(floors):
            axes.axhline(floor, linestyle="--", color=GREEN, label=f"best possible  {floor:.3f}")
    if both:
        axes.plot([], [], color=GREY, linewidth=1.0, label="thin, without markers: training")


def _fill_family(axes: Any, panel: "Panel", curves: Sequence[Curves]) -> None:
    """Draws the metrics of one kind, of all runs: the labels leave out the common part of the names."""
    parts = [column.replace("/", ".").split(".") for column in panel.family]
    begin = len(list(takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False))))
    begin -= any(part[begin:] and part[begin].isdigit() for part in parts)  # `blocks.0`, not `0`
    end = len(list(takewhile(lambda part: len(set(part)) == 1, zip(*(each[::-1] for each in parts), strict=False))))
    lines = []
    for each in curves:
        for column, part in zip(panel.family, parts, strict=True):
            short = ".".join(part[begin : len(part) - end]) or column
            name = f"{each.label}, {short}" if each.label and len(curves) > 1 else short
            lines += [(name, each, column)] if column in each.columns else []
    for (name, each, column), look in zip(lines, looks([name for name, *_ in lines]), strict=True):
        x, y = each.columns[column]
        axes.plot(x, y, **look, markersize=3, linewidth=1.0, label=_label(name, y))
        _band(axes, x, y, each.spread.get(column), look["color"])


def _label(name: str, values: np.ndarray) -> str | None:
    last = f"{values[-1]:.3f}" if not 0 < abs(values[-1]) < 0.1 else f"{values[-1]:.3g}"
    return f"{plain(name)}  {last}" if name else None


def _band(axes: Any, x: np.ndarray, y: np.ndarray, spread: np.ndarray | None, color: str) -> None:
    if spread is not None:
        axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
