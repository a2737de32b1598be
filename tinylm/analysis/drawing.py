"""Drawings made of boxes, lines and words, written as SVG by hand, or drawn by matplotlib as PNG and PDF.

One unit is a pixel on a screen and a point on paper. An SVG follows the reader's choice of a light or dark page
(`prefers-color-scheme`) and has its own background, so it is legible on any page; the other formats have one theme.
Words are measured in DejaVu Sans, which is wider than the fonts that browsers choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

from tinylm.checks import require
from tinylm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
# Colours by their role. Okabe and Ito's blue and vermilion, lighter on a dark page.
THEMES: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#ffffff", "frame": "#f3f5f7", "box": "#e3ebf3", "edge": "#8a94a0", "ink": "#16191d",
        "faint": "#515a64", "blue": "#0072b2", "orange": "#c04f00", "green": "#007a5a", "none": "none",
    },
    "dark": {
        "paper": "#14171b", "frame": "#1d2228", "box": "#2b3540", "edge": "#7f8a96", "ink": "#f1f3f5",
        "faint": "#b4bdc7", "blue": "#63b5ea", "orange": "#f29a57", "green": "#4cc9a0", "none": "none",
    },
}  # fmt: skip
FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
HEAD = 7  # length of an arrow's head


@dataclass(frozen=True)
class Rectangle:
    """A rectangle with round corners; `fill` and `edge` are roles."""

    x: float
    y: float
    width: float
    height: float
    fill: str = "box"
    edge: str = "edge"
    radius: float = 4


@dataclass(frozen=True)
class Line:
    """A line through points, with an arrow's head at its end if wanted; `color` is a role."""

    points: tuple[Point, ...]
    color: str = "faint"
    width: float = 1.3
    arrow: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Circle:
    """A circle; `fill` and `edge` are roles."""

    x: float
    y: float
    radius: float
    fill: str = "paper"
    edge: str = "blue"


@dataclass(frozen=True)
class Words:
    """A line of text; (x, y) is on its base line, at its start, middle or end."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: Literal["start", "middle", "end"] = "start"
    color: str = "ink"
    bold: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, by the widths of DejaVu Sans."""
        width = text_width(self.text, self.size, self.bold)
        left = self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * width
        return left, self.y - 0.8 * self.size, left + width, self.y + 0.25 * self.size


Shape = Rectangle | Line | Circle | Words


class Drawing:
    """Shapes on a canvas; later ones are above earlier ones.

    Args:
        width: of the canvas
        height: of the canvas
        title: a few words for screen readers
        description: the content of the drawing, for screen readers
    """

    def __init__(self, width: float, height: float, title: str, description: str = "") -> None:
        self.width, self.height, self.title, self.description = width, height, title, description
        self.shapes: list[Shape] = []

    def add(self, *shapes: Shape) -> None:
        """Adds shapes."""
        self.shapes.extend(shapes)

    def arrow(self, *points: Point, color: str = "faint", width: float = 1.3) -> None:
        """Adds a line with a head at its end."""
        self.add(Line(points, color, width, arrow=True))

    def plus(self, x: float, y: float, color: str = "blue") -> None:
        """Adds the sign of a sum, a plus in a circle."""
        cross = [Line(((x - 4, y), (x + 4, y)), color, 1.6), Line(((x, y - 4), (x, y + 4)), color, 1.6)]
        self.add(Circle(x, y, 8, "paper", color), *cross)

    def save(self, path: str | Path, theme: str | None = None) -> None:
        """Writes the drawing, in the format of the suffix.

        Args:
            path: ends in .svg, which has both themes, .png or .pdf
            theme: of a .png or .pdf. Default: `chosen_theme`

        Raises:
            ConfigError: for another suffix.
        """
        suffix = Path(path).suffix
        require(suffix in (".svg", ".png", ".pdf"), f"{path}: a drawing ends in .svg, .png or .pdf")
        if suffix == ".svg":
            with atomic_write(path) as file:
                file.write(self.svg().encode())
            return
        from tinylm.runs.plots import save_figure
        from tinylm.runs.style import chosen_theme

        save_figure(self.figure(theme or chosen_theme()), path)

    def svg(self) -> str:
        """The SVG file."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        ground = Rectangle(0, 0, self.width, self.height, "paper", "none", 6)
        lines = [
            "<?xml version='1.0' encoding='utf-8'?>",
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">',
            f"<title>{escape(self.title)}</title>",
            f"<desc>{escape(self.description)}</desc>",
            '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>tinylm</dc:title></metadata>',
            f"<style>\n{_rules('light')}\n@media (prefers-color-scheme: dark) {{\n{_rules('dark')}\n}}\n</style>",
            *(_element(shape) for shape in (ground, *self.shapes)),
            "</svg>\n",
        ]
        return "\n".join(lines)

    def figure(self, theme: str) -> "Figure":
        """A figure of matplotlib with these shapes, in one theme."""
        from matplotlib.figure import Figure

        colors = THEMES[theme]
        figure = Figure(figsize=(self.width / 72, self.height / 72), facecolor=colors["paper"])
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        for number, shape in enumerate(self.shapes):
            _draw(axes, shape, colors, number)
        return figure


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line in DejaVu Sans."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=size)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]


def wrapped(text: str, width: float, size: float = 12, bold: bool = False) -> list[str]:
    """The lines of a text, broken at spaces (not at no-break spaces) so that none is wider than `width`."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


# --- SVG


def _rules(theme: str) -> str:
    return "\n".join(
        f".f-{role} {{ fill: {color} }} .s-{role} {{ stroke: {color} }}" for role, color in THEMES[theme].items()
    )


def _element(shape: Shape) -> str:
    match shape:
        case Rectangle(x, y, width, height, fill, edge, radius):
            size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
            return f'<rect {size} class="f-{fill} s-{edge}"/>'
        case Circle(x, y, radius, fill, edge):
            return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" stroke-width="1.6" class="f-{fill} s-{edge}"/>'
        case Line(points, color, width, arrow, dashed):
            dashes = ' stroke-dasharray="4 3"' * dashed
            body = f'<polyline points="{_points(_shortened(points) if arrow else points)}" fill="none"'
            body += f' stroke-width="{width:g}"{dashes} class="s-{color}"/>'
            return body + f'<polygon points="{_points(_head(points, width))}" class="f-{color}"/>' * arrow
        case Words(x, y, text, size, anchor, color, bold):
            place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
            weight = ' font-weight="600"' * bold
            return f'<text {place}{weight} class="f-{color}">{escape(text)}</text>'


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _direction(points: Sequence[Point]) -> Point:
    (x0, y0), (x1, y1) = points[-2:]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1.0
    return (x1 - x0) / length, (y1 - y0) / length


def _shortened(points: Sequence[Point]) -> list[Point]:
    """The points of an arrow's line, which ends within its head."""
    (x, y), (dx, dy) = points[-1], _direction(points)
    return [*points[:-1], (round(x - HEAD / 2 * dx, 2), round(y - HEAD / 2 * dy, 2))]


def _head(points: Sequence[Point], width: float) -> list[Point]:
    """The triangle at the end of an arrow."""
    (x, y), (dx, dy) = points[-1], _direction(points)
    half = 2.6 + width / 2
    back = (x - HEAD * dx, y - HEAD * dy)
    corners = [(x, y), (back[0] - half * dy, back[1] + half * dx), (back[0] + half * dy, back[1] - half * dx)]
    return [(round(a, 2), round(b, 2)) for a, b in corners]


# --- matplotlib


def _draw(axes: Any, shape: Shape, colors: dict[str, str], order: int) -> None:
    from matplotlib.patches import Circle as Disc
    from matplotlib.patches import FancyBboxPatch, Polygon

    match shape:
        case Rectangle(x, y, width, height, fill, edge, radius):
            style = f"round,pad=0,rounding_size={radius}"
            look: dict[str, Any] = dict(facecolor=colors[fill], edgecolor=colors[edge], linewidth=1, zorder=order)
            axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **look))
        case Circle(x, y, radius, fill, edge):
            axes.add_patch(Disc((x, y), radius, facecolor=colors[fill], edgecolor=colors[edge], lw=1.6, zorder=order))
        case Line(points, color, width, arrow, dashed):
            xs, ys = zip(*(_shortened(points) if arrow else points), strict=True)
            axes.plot(xs, ys, "--" if dashed else "-", color=colors[color], linewidth=width, zorder=order)
            if arrow:
                axes.add_patch(Polygon(_head(points, width), facecolor=colors[color], linewidth=0, zorder=order))
        case Words(x, y, text, size, anchor, color, bold):
            align = {"start": "left", "middle": "center", "end": "right"}[anchor]
            look: dict[str, Any] = dict(ha=align, va="baseline", fontsize=size, color=colors[color], zorder=order)
            axes.text(
                x, y, text, fontfamily="DejaVu Sans", weight="bold" if bold else "normal", parse_math=False, **look
            )
