"""The style of all pictures, `tinylm.mplstyle`, and its dark theme; matplotlib is imported when a picture is drawn.

The option `--theme dark`, or the environment variable `TINYLM_THEME`, chooses the theme. A function that draws is
decorated with `@style()`, begins with `new_figure`, and takes its colours from here: the colours of series are entries
of the style's cycle, which become red, green and blue only when the figure is drawn.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.console import THEME, THEMES
from tinylm.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PACKAGE = Path(__file__).parents[1]
FILES = {"light": ("tinylm.mplstyle",), "dark": ("tinylm.mplstyle", "dark.mplstyle")}

COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6")
"""Colours of series. Markers and dashes distinguish them in print."""
BLUE, ORANGE, GREEN, GREY = "C0", "C1", "C7", "C8"
"""GREEN marks the best possible loss, GREY secondary elements."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in how bright a colour appears."""


def chosen_theme() -> str:
    """The theme in the environment, or `light`.

    Raises:
        ConfigError: if there is no such theme.
    """
    theme = os.environ.get(THEME) or THEMES[0]
    if theme not in THEMES:
        raise ConfigError(f"{THEME} must be one of {', '.join(THEMES)}, got {theme!r}")
    return theme


@contextmanager
def style(theme: str | None = None) -> Iterator[None]:
    """Draws in tinylm's style; `@style()` before a function does so in every call.

    Settings of the user's matplotlibrc that the style does not contain, such as fonts, are kept.

    Args:
        theme: one of `THEMES`. Default: `chosen_theme`
    """
    from matplotlib.style import context

    with context([PACKAGE / name for name in FILES[theme or chosen_theme()]]):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, of a size in inches; pyplot, with its global state and its windows, is not used.

    The figure keeps the theme in which it was begun, wherever it is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    theme = chosen_theme()

    class StyledFigure(Figure):
        def draw(self, renderer: Any) -> None:
            # ticks are created, and colours of the cycle looked up, when a figure is drawn
            with style(theme), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # drawn as boxes
                super().draw(renderer)

    with style(theme):
        figure = StyledFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def ink() -> str:
    """The colour of text."""
    return _setting("text.color")


def faint() -> str:
    """The colour of secondary elements, such as hatches."""
    return _setting("grid.color")


def shades() -> "Colormap":
    """A scale for quantities from zero: from the colour of the ground to one hue, which survives photocopying."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = {"light": ("9ecae1", "0072B2", "08264a"), "dark": ("1d4e79", "56A8E8", "e8f5ff")}[_theme_drawn()]
    return LinearSegmentedColormap.from_list("tinylm", [_setting("axes.facecolor"), *(f"#{stop}" for stop in stops)])


def letters(ground: Any) -> str:
    """Black or white, whichever is more legible on a colour."""
    from matplotlib.colors import to_rgb

    return "black" if luminance(to_rgb(ground)) > 0.18 else "white"  # at 0.18 both have the same contrast


def luminance(color: tuple[float, float, float]) -> float:
    """Relative luminance of red, green and blue, 0 for black and 1 for white (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return sum(share * part for share, part in zip(LUMINANCE, linear, strict=True))


def _theme_drawn() -> str:
    from matplotlib.colors import to_rgb

    return "dark" if luminance(to_rgb(_setting("figure.facecolor"))) < 0.18 else "light"


def _setting(name: Any) -> str:
    """A colour of the style in force, as `#rrggbb`."""
    import matplotlib
    from matplotlib.colors import to_hex

    return to_hex(matplotlib.rcParams[name])
