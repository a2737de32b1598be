"""Pictures of a metric against settings: lines with error bars for one setting, heat maps for two."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinylm.errors import ConfigError
from tinylm.runs.axes import add_legend, plain, scale_axis, tidy
from tinylm.runs.plots import looks
from tinylm.runs.settings import shown
from tinylm.runs.style import letters, new_figure, style
from tinylm.runs.sweep import Line, Point, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TICKS = 12
MOST_MAPS = 6


def is_number(value: Any) -> bool:
    """Whether a setting's value has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def ordered(values: Sequence[Any]) -> list[Any]:
    """Distinct values: numbers in ascending order, then others as they come."""
    distinct = list({shown(value): value for value in values}.values())
    return sorted(filter(is_number, distinct)) + [value for value in distinct if not is_number(value)]


def is_geometric(values: Sequence[float]) -> bool:
    """Whether values suit a logarithmic axis.

    All are positive, and their ratios vary at most half as much as their differences (by standard deviation over mean).
    For two values, the larger must be at least ten times the smaller.

    >>> is_geometric([0.003, 0.01, 0.03]), is_geometric([32, 64, 96]), is_geometric([1, 2, 4])
    (True, False, True)
    """
    values = sorted(set(values))
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] >= 10 * values[0]

    def variation(places: list[float]) -> float:
        gaps = [after - before for before, after in itertools.pairwise(places)]
        return statistics.pstdev(gaps) / statistics.fmean(gaps)

    return variation([math.log(value) for value in values]) <= variation(list(values)) / 2


@style()
def draw_lines(sweep: Sweep, *, title: str = "", log: Sequence[str] | None = None) -> "Figure":
    """Draws the metric against one setting: means with bars of one sample standard deviation, single runs as points.

    Args:
        sweep: the metric of the runs
        title: title of the plot
        log: logarithmic axes, "x" and "y". Default: the x axis if `is_geometric`
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    values = ordered([point.at[0] for line in sweep.lines for point in line.points])
    numeric = all(map(is_number, values))
    places: dict[str, float] = {shown(value): value if numeric else place for place, value in enumerate(values)}
    lines = zip(sweep.lines, looks([line.label for line in sweep.lines]), strict=True)
    for number, (line, look) in enumerate(lines):
        shift = 0.0 if numeric else 0.4 * (number - (len(sweep.lines) - 1) / 2) / max(4, len(sweep.lines))
        _errorbars(axes, line, look, places, shift)
    if numeric:
        scale_axis(axes.xaxis, 8, "x" in log if log is not None else is_geometric(values))
    scale_axis(axes.yaxis, 8, log is not None and "y" in log)
    if not numeric or len(values) <= MOST_TICKS:
        crowded = len(values) > 6 or sum(len(shown(value)) for value in values) > 60
        slanted: dict[str, Any] = dict(rotation=30, ha="right", rotation_mode="anchor") if crowded else {}
        axes.set_xticks(list(places.values()), [plain(name) for name in places], **slanted)
        axes.minorticks_off()
    axes.set(xlabel=plain(sweep.names[0]), ylabel=plain(sweep.metric), title=plain(title))
    add_legend(figure, axes, few=0)  # error bars would be behind one inside
    tidy(axes)
    return figure


def _errorbars(axes: Any, line: Line, look: dict[str, Any], places: dict[str, float], shift: float) -> None:
    """Draws one line; `shift` keeps the bars of several lines apart on an axis of categories."""
    points = sorted(line.points, key=lambda point: places[shown(point.at[0])])
    x = [places[shown(point.at[0])] + shift for point in points]
    several = [point.deviation is not None for point in points]
    alone = len({*x}) < len(x)  # runs of equal settings, each a point
    label = f"{plain(line.label)}{_seeds(points)}" if line.label else None
    axes.errorbar(
        x,
        [point.mean for point in points],
        yerr=[point.deviation or 0.0 for point in points] if any(several) else None,
        **look | ({"linestyle": "none"} if alone else {}),
        markersize=4,
        linewidth=1.2,
        capsize=3,
        label=label,
    )


def _seeds(points: Sequence[Point]) -> str:
    runs = {point.runs for point in points}
    return f" ({min(runs)} runs each)" if len(runs) == 1 and max(runs) > 1 else ""


@style()
def draw_maps(sweep: Sweep, *, title: str = "") -> "Figure":
    """Draws the metric against two settings as heat maps, one for each line, with the value written in each cell.

    Raises:
        ConfigError: if the runs differ in too many other settings.
    """
    if len(sweep.lines) > MOST_MAPS:
        names = "; ".join(line.label for line in sweep.lines[:3])
        raise ConfigError(
            f"--x: {len(sweep.lines)} heat maps, at most {MOST_MAPS} fit; choose fewer runs ({names}; ...)"
        )
    points = [point for line in sweep.lines for point in line.points]
    digits = max(
        0,
        3
        - math.floor(
            math.log10(max((abs(point.mean) for point in points if 0 < abs(point.mean) < math.inf), default=1.0))
        ),
    )
    columns, rows = ([*map(shown, ordered([point.at[axis] for point in points]))] for axis in (0, 1))
    means = [point.mean for point in points]
    wide = 1.6 if any(point.deviation is not None for point in points) else 1.0
    width = max(3.5, 1.2 + wide * len(columns)) * len(sweep.lines) + 1.0
    figure = new_figure(width, max(3.0, 1.4 + 0.65 * len(rows)))
    for place, line in enumerate(sweep.lines):
        axes = figure.add_subplot(1, len(sweep.lines), place + 1)
        image = _map(axes, line.points, columns, rows, (min(means), max(means)), digits)
        axes.set(xlabel=plain(sweep.names[0]), title=plain(line.label or title))
        if place == 0:
            axes.set_ylabel(plain(sweep.names[1]))
        if place == len(sweep.lines) - 1:
            figure.colorbar(image, ax=figure.axes, label=plain(sweep.metric), location="right")
    if title and (len(sweep.lines) > 1 or sweep.lines[0].label):
        figure.suptitle(plain(title))
    return figure


def _map(
    axes: Any, points: Sequence[Point], columns: list[str], rows: list[str], limits: tuple[float, float], digits: int
) -> Any:
    """Draws one heat map of values with so many decimals; cells without a run stay empty."""
    from matplotlib import colormaps

    cells = [[math.nan] * len(columns) for _ in rows]
    (low, high), colors = limits, colormaps["viridis"]
    for point in points:
        column, row = columns.index(shown(point.at[0])), rows.index(shown(point.at[1]))
        cells[row][column] = point.mean
        ground = colors((point.mean - low) / (high - low) if high > low else 0.5)
        text = f"{point.mean:.{digits}f}" + (f"\n±{point.deviation:.{digits}f}" if point.deviation is not None else "")
        axes.text(column, row, text, ha="center", va="center", color=letters(ground), fontsize="small")
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns], rotation=30 if len(columns) > 8 else 0)
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axes.spines[:].set_visible(False)
    return axes.imshow(cells, cmap=colors, vmin=low, vmax=high, aspect="auto", origin="lower")
