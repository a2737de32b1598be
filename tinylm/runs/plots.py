"""Plots of runs. matplotlib is imported when a plot is drawn."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinylm.files import atomic_write
from tinylm.runs.metrics import read_metrics
from tinylm.runs.style import COLORS, GREEN, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS, STYLES = ("o", "s", "^", "D", "v", "P", "X", "<", "*"), ("-", "--", ":", "-.")
SUFFIXES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 130
FEW = 5
"""Most labels inside the plot; longer legends stand beside it."""


class Panel(NamedTuple):
    """One panel of a plot: its label and the metrics that it shows."""

    label: str
    training: str = ""
    validation: str = ""
    floor: str = ""
    family: tuple[str, ...] = ()
    """Metrics of one kind, such as those of all layers: a line each."""


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
        partial: metrics that only some of several runs have, which have no mean
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
    """Draws loss, learning rate, gradient norm and throughput of a run against its steps.

    Args:
        metrics: metrics.csv of the run
        picture: PNG file to write
        title: title of the plot
    """
    columns = {name: (np.array(steps), np.array(values)) for name, (steps, values) in read_metrics(metrics).items()}
    draw([Curves("", columns)], [Path(picture)], title=title)


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

    The files are reproducible (no date, fixed ids), and are recognized by targets.py.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas, metadata = {
        ".svg": (FigureCanvasSVG, {"Date": None, "Creator": "tinylm"}),
        ".pdf": (FigureCanvasPdf, {"CreationDate": None, "Creator": "tinylm"}),
    }.get(Path(picture).suffix, (FigureCanvasAgg, {"Software": "tinylm"}))
    form = canvas.__name__.removeprefix("FigureCanvas").lower().replace("agg", "png")
    with matplotlib.rc_context({"svg.hashsalt": "tinylm", "pdf.fonttype": 42}), atomic_write(picture) as file:
        canvas(figure).print_figure(file, format=form, dpi=DOTS_PER_INCH, metadata=metadata)


def plain(text: str) -> str:
    """Escapes dollars, which matplotlib takes for mathematics."""
    return text.replace("$", r"\$")


@style()
def figure_of(
    curves: Sequence[Curves],
    *,
    title: str = "",
    axis: str = "step",
    panels: Sequence[str] = ("loss", "lr", "grad_norm", "throughput"),
    log: Sequence[str] = (),
) -> Any:
    """Draws several runs into one matplotlib Figure: the first panel large, the others in a row below.

    Training is a thin line, validation a line with markers, the mean of several runs a line in a band of one standard
    deviation to each side. A dashed line marks the loss floor where it is known.

    Args:
        curves: one entry per run
        title: title of the plot
        axis: label of the x axis
        panels: names that `find_panel` knows; one that no run has measured stays empty
        log: logarithmic axes, "x" and "y"
    """
    figure = new_figure(9, 6 if len(panels) > 1 else 4.5)
    small = panels[1:]
    grid = figure.add_gridspec(2 if small else 1, max(len(small), 1), height_ratios=(2, 1) if small else None)
    measured = dict.fromkeys(column for each in curves for column in each.columns)
    for place, name in enumerate(panels):
        axes = figure.add_subplot(grid[0, :] if place == 0 else grid[1, place - 1])
        panel = find_panel(name, measured) or PANELS[name]
        (_fill_family if panel.family else _fill)(axes, panel, curves)
        axes.set(xlabel=axis, **({"title": plain(title), "ylabel": plain(panel.label)} if place == 0 else {}))
        if place > 0:
            axes.set_title(plain(panel.label))
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(short_number)
        if "x" not in log:
            axes.xaxis.set_major_formatter(short_number)
            axes.locator_params(axis="x", nbins=9 if place == 0 else 5)
        if place == 0 or panel.family:
            add_legend(figure, axes, small=place > 0)
        tidy(axes)
    return figure


def add_legend(figure: "Figure", axes: Any, few: int = FEW, small: bool = False) -> None:
    """Adds a legend: inside the axes, or beside them if it has more than `few` lines; the figure grows by its width.

    The legend of a large panel stands beside the whole figure, that of a small one beside the panel.
    """
    lines, names = axes.get_legend_handles_labels()
    size = "x-small" if small else "small"
    if len(names) > few:
        figure.set_figwidth(figure.get_figwidth() + 0.5 + 0.075 * max(map(len, names)))
    if len(names) > few and small:
        axes.legend(frameon=False, fontsize=size, loc="upper left", bbox_to_anchor=(1.0, 1.05), handlelength=2.5)
    elif len(names) > few:
        figure.legend(lines, names, loc="outside right upper", frameon=False, fontsize=size, handlelength=3.5)
    elif names:
        axes.legend(frameon=False, fontsize=size, handlelength=2.5)


def tidy(axes: Any) -> None:
    """A faint grid."""
    axes.grid(True)


def short_number(value: float, _: Any = None) -> str:
    """A number on an axis, such as `0.003`, `800` or `20k`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 1e4 <= abs(value) < 1e15 and abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _fill(axes: Any, panel: "Panel", curves: Sequence[Curves]) -> None:
    """Draws one panel for all runs."""
    for each, look in zip(curves, looks([each.label for each in curves]), strict=True):
        color, style, marker = look.values()
        if panel.training in each.columns:
            x, y = each.columns[panel.training]
            has_other = panel.validation in each.columns
            label = _label(panel.training if not each.label else "" if has_other else each.label, y)
            faint = bool(each.label) and has_other
            axes.plot(x, y, style, color=color, linewidth=1.0, alpha=0.55 if faint else 1.0, label=label)
            _band(axes, x, y, each.spread.get(panel.training), color)
        if panel.validation in each.columns:
            x, y = each.columns[panel.validation]
            color = color if each.label else ORANGE
            points = {"marker": marker, "markersize": 4}
            axes.plot(x, y, style, color=color, label=_label(each.label or panel.validation, y), **points)
            _band(axes, x, y, each.spread.get(panel.validation), color)
        if not each.label and panel.validation:  # of a run alone: its curve for each source of a mixture
            sources = sorted(name for name in each.columns if name.startswith(f"{panel.validation}_"))
            for name, color in zip(sources, cycle(COLORS[2:])):
                x, y = each.columns[name]
                axes.plot(x, y, ":", color=color, label=_label(name, y), marker=".")
    if panel.floor:
        floors = {round(each.columns[panel.floor][1][-1], 6) for each in curves if panel.floor in each.columns}
        for floor in sorted(floors):
            axes.axhline(floor, linestyle="--", color=GREEN, label=f"best possible  {floor:.3f}")


def _fill_family(axes: Any, panel: "Panel", curves: Sequence[Curves]) -> None:
    """Draws the metrics of one kind, of all runs: the labels leave out what all names share."""
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
