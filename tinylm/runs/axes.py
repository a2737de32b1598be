"""Ticks, numbers, grids and legends of pictures."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 5
"""Most labels inside the plot; longer legends stand beside it."""


def scale_axis(axis: Any, most: int, logarithmic: bool = False) -> None:
    """Gives an axis at most `most` ticks, with plain numbers and no offset; call it after drawing the data."""
    if logarithmic:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        low, high = axis.get_view_interval()
        axis.set_ticks(log_ticks(low, high, most))
        axis.set_minor_formatter("")
    else:
        axis.get_major_locator().set_params(nbins=most)
    axis.set_major_formatter(short_number)


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers for a logarithmic axis: at most `most`; evenly spaced if the axis spans less than a decade.

    >>> log_ticks(1, 800, 9), log_ticks(1e3, 2e12, 4)
    ([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0], [1000.0, 1000000.0, 1000000000.0, 1000000000000.0])
    """
    from matplotlib.ticker import MaxNLocator

    found: list[float] = []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), every) for every in range(1, len(powers) + 1))):
        ticks = [digit * 10.0**power for power in powers if power % every == 0 for digit in digits]
        found = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(found) <= most:
            break
    if len(found) >= (2 if high >= 10 * low else 3):
        return found
    return [float(tick) for tick in MaxNLocator(most).tick_values(low, high) if low <= tick <= high]


def short_number(value: float, _: Any = None) -> str:
    """A number on an axis, such as `0.003`, `800` or `20k`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 1e4 <= abs(value) < 1e15 and abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def plain(text: str) -> str:
    """Escapes dollar signs, which matplotlib reads as mathematics."""
    return text.replace("$", r"\$")


def tidy(axes: Any) -> None:
    """A faint grid."""
    axes.grid(True)


def add_legend(figure: "Figure", axes: Any, few: int = FEW, small: bool = False) -> None:
    """Adds a legend: inside the axes, or beside them if it has more than `few` lines; the figure grows by its width.

    The legend of a large panel stands beside the whole figure, that of a small one beside the panel.
    """
    lines, names = axes.get_legend_handles_labels()
    size = "x-small" if small else "small"
    if len(names) > few:
        figure.set_figwidth(figure.get_figwidth() + 0.5 + 0.075 * max(map(len, names)))
    if len(names) > few and small:
        axes.legend(fontsize=size, loc="upper left", bbox_to_anchor=(1.0, 1.05))
    elif len(names) > few:
        figure.legend(lines, names, loc="outside right upper", fontsize=size, handlelength=3.5)
    elif names:
        axes.legend(fontsize=size)
