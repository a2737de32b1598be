"""Pictures of a run. matplotlib is imported when a picture is drawn, not before."""

import csv
from pathlib import Path

from tinylm.files import atomic_write

# Okabe and Ito's colours, which the colour-blind tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


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


def draw_curves(metrics: str | Path, picture: str | Path, title: str) -> None:
    """Draws loss, learning rate, gradient norm and throughput of a run against its steps.

    Args:
        metrics: a run's metrics.csv
        picture: the PNG to write
        title: what stands above
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = read_metrics(metrics)
    figure = Figure(figsize=(9, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: nothing global, no window
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1))
    loss = figure.add_subplot(grid[0, :])
    for name, color, style in (("train/loss", BLUE, "-"), ("val/loss", ORANGE, "o-")):
        if name in columns:
            steps, values = columns[name]
            loss.plot(steps, values, style, color=color, markersize=4, label=f"{name}  {values[-1]:.3f}")
    if "val/floor" in columns:
        floor = columns["val/floor"][1][-1]
        loss.axhline(floor, linestyle="--", color=GREEN, label=f"best possible  {floor:.3f}")
    loss.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    if loss.lines:
        loss.legend(frameon=False)
    small = (("lr", "learning rate"), ("train/grad_norm", "gradient norm"), ("perf/tokens_per_sec", "tokens/s"))
    for place, (name, label) in enumerate(small):
        axes = figure.add_subplot(grid[1, place])
        axes.plot(*columns.get(name, ([], [])), color=GREEN)
        axes.set(title=label, xlabel="step")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    for axes in figure.axes:
        axes.grid(color=GREY, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(picture) as file:
        canvas.print_png(file)
