"""Plots of runs. matplotlib is imported when a plot is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinylm.files import atomic_write
from tinylm.runs.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers; markers and dashes help in print
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLORS = (BLUE, ORANGE, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", ":", "-.")
DOTS_PER_INCH = 130
FEW = 8
"""Most labels inside the plot; longer legends stand beside it."""


class Panel(NamedTuple):
    """One panel of a plot: its label and the metrics that it shows."""

    label: str
    training: str = ""
    validation: str = ""
    floor: str = ""


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
    """

    label: str
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    spread: dict[str, np.ndarray] = field(default_factory=dict)


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
        pictures: files to write, .png or .svg
        options: options of `figure_of`
    """
    figure = figure_of(curves, **options)
    for picture in pictures:
        save_figure(figure, picture)


def save_figure(figure: "Figure", picture: str | Path) -> None:
    """Writes a figure atomically, as PNG or, for a name that ends in .svg, as SVG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    is_svg = Path(picture).suffix == ".svg"
    canvas = (FigureCanvasSVG if is_svg else FigureCanvasAgg)(figure)
    # reproducible files: no date, fixed ids
    with matplotlib.rc_context({"svg.hashsalt": "tinylm"}), atomic_write(picture) as file:
        metadata = {"Date": None, "Creator": "tinylm"} if is_svg else {"Software": "tinylm"}  # recognized by targets.py
        canvas.print_figure(file, format="svg" if is_svg else "png", dpi=DOTS_PER_INCH, metadata=metadata)


def plain(text: str) -> str:
    """Escapes dollars, which matplotlib takes for mathematics."""
    return text.replace("$", r"\$")


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
        panels: names in `PANELS`
        log: logarithmic axes, "x" and "y"
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6 if len(panels) > 1 else 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no window
    small = panels[1:]
    grid = figure.add_gridspec(2 if small else 1, max(len(small), 1), height_ratios=(2, 1) if small else None)
    for place, name in enumerate(panels):
        axes = figure.add_subplot(grid[0, :] if place == 0 else grid[1, place - 1])
        _fill(axes, PANELS[name], curves)
        axes.set(xlabel=axis, **({"title": plain(title), "ylabel": PANELS[name].label} if place == 0 else {}))
        if place > 0:
            axes.set_title(PANELS[name].label)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        elif name in ("lr", "throughput"):
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        lines, names = axes.get_legend_handles_labels()
        if place == 0 and len(names) > FEW:
            figure.legend(lines, names, loc="outside right upper", frameon=False, fontsize="small")
        elif place == 0 and names:
            axes.legend(frameon=False)
        axes.grid(color=GREY, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _fill(axes: Any, panel: "Panel", curves: Sequence[Curves]) -> None:
    """Draws one panel for all runs."""
    for number, each in enumerate(curves):
        color, style = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
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
            points = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
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


def _label(name: str, values: np.ndarray) -> str | None:
    return f"{plain(name)}  {values[-1]:.3f}" if name else None


def _band(axes: Any, x: np.ndarray, y: np.ndarray, spread: np.ndarray | None, color: str) -> None:
    if spread is not None:
        axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
