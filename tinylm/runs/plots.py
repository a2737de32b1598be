"""Pictures of a run. matplotlib is imported when a picture is drawn, not before."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinylm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; in print, points and dashes help
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLORS = (BLUE, ORANGE, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", ":", "-.")
DOTS_PER_INCH = 130
FEW = 8
"""More names than that stand beside the picture."""


class Panel(NamedTuple):
    """A part of the picture: its name, and the metrics that it shows."""

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


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """The columns of a metrics.csv: name -> (steps, values), empty cells left out."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return columns


@dataclass(frozen=True)
class Curves:
    """What is drawn of a run, or of several as one.

    Attributes:
        label: its name in the picture
        columns: of each metric, where its points stand on the x axis, and the values
        spread: of the mean of several runs: the sample standard deviation at each point
    """

    label: str
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    spread: dict[str, np.ndarray] = field(default_factory=dict)


def draw_curves(metrics: str | Path, picture: str | Path, title: str) -> None:
    """Draws loss, learning rate, gradient norm and throughput of a run against its steps.

    Args:
        metrics: a run's metrics.csv
        picture: the PNG to write
        title: what stands above
    """
    columns = {name: (np.array(steps), np.array(values)) for name, (steps, values) in read_metrics(metrics).items()}
    draw([Curves("", columns)], [Path(picture)], title=title)


def draw(curves: Sequence[Curves], pictures: Sequence[Path], **options: Any) -> None:
    """Draws runs over each other.

    Args:
        curves: of each run
        pictures: files to write, .png or .svg
        options: `figure_of`'s
    """
    figure = figure_of(curves, **options)
    for picture in pictures:
        save_figure(figure, picture)


def save_figure(figure: "Figure", picture: str | Path) -> None:
    """Writes a figure atomically, as PNG or, to a name that ends in .svg, as SVG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    is_svg = Path(picture).suffix == ".svg"
    canvas = (FigureCanvasSVG if is_svg else FigureCanvasAgg)(figure)
    # the same picture is the same file: no date, and names inside that do not change
    with matplotlib.rc_context({"svg.hashsalt": "tinylm"}), atomic_write(picture) as file:
        metadata = {"Date": None} if is_svg else {}
        canvas.print_figure(file, format="svg" if is_svg else "png", dpi=DOTS_PER_INCH, metadata=metadata)


def plain(text: str) -> str:
    """matplotlib reads what stands between two dollars as mathematics."""
    return text.replace("$", r"\$")


def figure_of(
    curves: Sequence[Curves],
    *,
    title: str = "",
    axis: str = "step",
    panels: Sequence[str] = ("loss", "lr", "grad_norm", "throughput"),
    log: Sequence[str] = (),
) -> Any:
    """Runs over each other as matplotlib's Figure: the first panel large, the others in a row below.

    Training is a thin line, validation one with points; behind the mean of several runs lies a band of one standard
    deviation to both sides. A dashed line is the best possible loss where it is known.

    Args:
        curves: of each run
        title: what stands above
        axis: what the x axis is
        panels: of `PANELS`
        log: which axes are logarithmic, of x and y
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
    """Draws one metric of all runs."""
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
    if panel.floor:
        floors = {round(each.columns[panel.floor][1][-1], 6) for each in curves if panel.floor in each.columns}
        for floor in sorted(floors):
            axes.axhline(floor, linestyle="--", color=GREEN, label=f"best possible  {floor:.3f}")


def _label(name: str, values: np.ndarray) -> str | None:
    return f"{plain(name)}  {values[-1]:.3f}" if name else None


def _band(axes: Any, x: np.ndarray, y: np.ndarray, spread: np.ndarray | None, color: str) -> None:
    if spread is not None:
        axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
