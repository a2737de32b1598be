"""Figures of attention maps, head scores, activations, gradients and the logit lens, drawn without pyplot.

Quantities are drawn on a scale of one hue from the background's colour to its opposite, which survives photocopying and
colour blindness.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tinylm.analysis.activations import FAR, Activations
from tinylm.analysis.gradients import BINS, DECADES, Gradients
from tinylm.analysis.lens import Readings
from tinylm.runs.axes import plain, scale_axis
from tinylm.runs.style import BLUE, GREEN, GREY, ORANGE, faint, letters, new_figure, shades, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_TOKEN = 0.125  # inches of a token along a map, for letters of 7 points
LARGEST = 40.0  # inches; the names of tokens are left out of larger figures
RARE = 1e-3  # histograms end where no part has more than this share of its weights
NARROW = 0.1  # smallest range of a scale of head scores, so that noise does not look like a difference
LINE, LONGEST = 10, 10  # tokens of the lens in a line, and letters of a token
LINES = {
    "stream": ("residual stream", BLUE, "o-"), "attention": ("attention output", ORANGE, "s--"),
    "feedforward": ("feed-forward output", GREEN, "^-."), "units": ("feed-forward units", GREY, "D:"),
}  # fmt: skip


def _figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure with a title, which is broken into lines that fit."""
    figure = new_figure(width, height)
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, int(11 * width))]
    figure.suptitle(plain("\n".join(lines)))
    return figure


def _numbers(tensor: Tensor) -> "np.ndarray":
    return tensor.detach().float().cpu().numpy()


def legible(word: str, most: int = 100) -> str:
    """A token for a label: single punctuation marks in quotes, since they are easily missed; cut to `most` letters."""
    word = f"“{word}”" if len(word.strip("·")) == 1 and not word.strip("·").isalnum() else word
    return plain(word if len(word) <= most else f"{word[: most - 1]}…")


def _write_tokens(axis: Any, labels: Sequence[str], **options: Any) -> None:
    axis.set_ticks(range(len(labels)), [legible(label) for label in labels], **options)


def _tidy(*panels: "Axes") -> None:
    for axes in panels:
        axes.grid(True)


@style()
def draw_attention(maps: Tensor, labels: Sequence[str], notes: Sequence[Sequence[str]], title: str) -> "Figure":
    """The attention maps of one text, (layers, H, T, T): layers from top to bottom, heads from left to right.

    Keys after the query, which it does not see, are hatched.

    Args:
        maps: weights of queries (rows) on keys (columns)
        labels: the text's tokens, written along the outer axes
        notes: heading of each map
        title: of the figure
    """
    from matplotlib.colors import PowerNorm

    layers, heads, T, _ = maps.shape
    side = max(1.7, PER_TOKEN * T)
    named = max(side * heads, side * layers) <= LARGEST
    side = side if named else 1.7
    figure = _figure(side * heads + 1.8, (side + 0.25) * layers + 1.5, title)
    grid = figure.subplots(layers, heads, squeeze=False)
    future = np.triu(np.ones((T, T), dtype=bool), 1)
    image = None
    for layer, head in product(range(layers), range(heads)):
        axes: Axes = grid[layer, head]
        axes.patch.set(hatch="///", edgecolor=(faint(), 0.5), linewidth=0)
        weights = np.ma.array(_numbers(maps[layer, head]), mask=future)
        # square root: weights of a few hundredths stay visible
        image = axes.imshow(weights, cmap=shades(), norm=PowerNorm(0.5, 0, 1))
        axes.set_title(notes[layer][head], fontsize=9)
        axes.tick_params(length=0, labelsize=7)
        _write_tokens(axes.xaxis, labels if named and layer == layers - 1 else (), rotation=90)
        _write_tokens(axes.yaxis, labels if named and head == 0 else ())
        if head == 0:
            axes.set_ylabel(f"layer {layer}")
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid.flat), ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format="{x:g}", shrink=0.6)
    bar.set_label("weight of query (row) on key (column)")
    return figure


@style()
def draw_heads(tables: dict[str, Tensor], title: str) -> "Figure":
    """Scores of every head, (layers, H): a panel with its own scale for each named score; NaN is left blank."""
    layers, heads = next(iter(tables.values())).shape
    across = len(tables) if heads <= 6 else 1
    down = len(tables) // across
    width, height = max(0.48 * heads, 1.6) + 0.7, max(0.36 * layers, 0.8) + 0.9
    figure = _figure(width * across, height * down + 0.3, title)
    for axes, (name, scores) in zip(figure.subplots(down, across, squeeze=False).flat, tables.items(), strict=True):
        known = scores[~scores.isnan()]
        low, high = (known.min().item(), known.max().item()) if len(known) else (0.0, 1.0)
        high = max(high, low + NARROW)
        image = axes.imshow(_numbers(scores), cmap=shades(), vmin=low, vmax=high, aspect="auto")
        axes.set(title=name, xlabel="head", ylabel="layer", xticks=range(heads), yticks=range(layers))
        axes.tick_params(length=0)
        for layer, head in product(range(layers), range(heads)):
            value = scores[layer, head].item()
            color = letters(shades()((value - low) / (high - low)))
            if not math.isnan(value):
                axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
        bar = figure.colorbar(image, ax=axes, aspect=12)
        scale_axis(bar.ax.yaxis, 4)
    return figure


@style()
def draw_activations(found: Sequence[Activations], title: str) -> "Figure":
    """Standard deviation, largest value, outliers and dead units by layer, one line for each place.

    Only the units of feed-forward layers can be dead. If a share is zero everywhere, the title says so.
    """
    panels: dict[str, tuple[str, Callable[[Activations], float]]] = {
        "standard deviation": ("activation", lambda each: each.std),
        "largest distance from the mean": ("standard deviations", lambda each: each.largest),
        f"outliers beyond {FAR:g} standard deviations": ("% of the values", lambda each: 100 * each.outliers),
        "dead units": ("% of the units", lambda each: 100 * each.dead if each.place == "units" else 0.0),
    }
    drawn = {name: panel for name, panel in panels.items() if any(map(panel[1], found))}
    none = [f"no {name}" for name in panels if name not in drawn]
    down = -(-len(drawn) // 2)
    figure = _figure(7, 2.5 * down + 0.7, "\n".join([title, *none]))
    layers = sorted({each.layer for each in found})
    for number, (name, (unit, value)) in enumerate(drawn.items(), start=1):
        axes = figure.add_subplot(down, 2, number)
        for place, (label, color, form) in LINES.items():
            # the embedding is the stream before the first block
            ours = [each for each in found if each.place == place or (place, each.place) == ("stream", "embedding")]
            if name != "dead units" or place == "units":
                axes.plot([e.layer for e in ours], [value(e) for e in ours], form, color=color, label=label)
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(layers, ["embedding" if layer < 0 else str(layer) for layer in layers])
        axes.set(xlabel="layer", ylabel=unit, ylim=(0, None))
        scale_axis(axes.yaxis, 5)
    _tidy(*figure.axes)
    lines = figure.axes[0].get_legend_handles_labels()
    if len(drawn) % 2:  # there is room beside the last panel
        figure.add_subplot(down, 2, 2 * down, frame_on=False, xticks=(), yticks=()).legend(*lines, loc="center")
    else:
        figure.legend(*lines, loc="outside lower center", ncols=4)
    return figure


@style()
def draw_gradients(found: Sequence[Gradients], title: str) -> "Figure":
    """The gradient norm, the gradient noise scale and the histogram of gradient sizes of every part."""
    rows = range(len(found))
    figure = _figure(9, 0.28 * len(found) + 1.8, title)
    norms, scales, sizes = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.4))
    norms.plot([each.norm for each in found], rows, "o", color=BLUE)
    norms.set(title="gradient norm")
    norms.set_yticks(rows, [each.part for each in found])
    shown = [(each.noise_scale, row) for row, each in zip(rows, found, strict=True) if each.signal > 0]
    scales.plot([scale for scale, _ in shown], [row for _, row in shown], "s", color=ORANGE)
    scales.set(title="gradient noise scale", xlabel="sequences")
    for row in set(rows) - {row for _, row in shown}:
        place = dict(transform=scales.get_yaxis_transform(), ha="center", va="center")
        scales.text(0.5, row, "hidden by noise", size=8, **place)
    for axes in (norms, scales):
        if any(value > 0 for line in axes.lines for value in line.get_xdata()):
            axes.margins(x=0.1)
            scale_axis(axes.xaxis, 4, logarithmic=True)
        axes.tick_params(axis="y", length=0)
    _tidy(norms, scales)
    _draw_histograms(figure, sizes, [each.histogram for each in found])
    norms.set_ylim(len(found) - 0.5, -0.5)  # the embedding on top
    return figure


def _draw_histograms(figure: "Figure", axes: "Axes", histograms: Sequence[Sequence[int]]) -> None:
    from matplotlib.ticker import MaxNLocator

    counted = [[count / max(sum(counts), 1) for count in counts] for counts in histograms]
    used = [column for column in range(BINS) if any(share[column] > RARE for share in counted)]
    axes.set(title="size of a weight's gradient")
    axes.tick_params(axis="y", length=0)
    if not used:
        return
    first, last = used[0], used[-1] + 1
    width = (DECADES[1] - DECADES[0]) / BINS
    extent = (DECADES[0] + first * width, DECADES[0] + last * width, len(counted) - 0.5, -0.5)
    shares = [share[first:last] for share in counted]
    image = axes.imshow(shares, cmap=shades(), aspect="auto", extent=extent, vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the weights")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("$10^{{{x:.0f}}}$")


@style()
def draw_lens(readings: Readings, ids: Sequence[int], words: Sequence[str], title: str) -> "Figure":
    """The prediction of each layer after each token of a text, last layer on top; the darker, the more probable.

    The text is broken into lines. Above each stands the true next token; predictions of it are framed.

    Args:
        readings: predictions of T tokens
        ids: the tokens, T, or T + 1 with the one that follows the last
        words: all tokens of the vocabulary
        title: of the figure
    """
    layers, T = readings.best.shape
    lines = [range(begin, min(begin + LINE, T)) for begin in range(0, T, LINE)]
    figure = _figure(0.58 * min(LINE, T) + 1.2, (0.3 * layers + 0.85) * len(lines) + 1.1, title)
    figure.get_layout_engine().set(hspace=0.12)  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
    image = None
    for axes, line in zip(figure.subplots(len(lines), 1, squeeze=False).flat, lines, strict=True):
        image = _draw_line(axes, readings, ids, words, line)
    assert image is not None
    bar = figure.colorbar(image, ax=figure.axes, location="bottom", aspect=40, shrink=0.6, pad=0.02)
    bar.set_label("probability (framed: the next token)")
    return figure


def _draw_line(axes: "Axes", readings: Readings, ids: Sequence[int], words: Sequence[str], line: range) -> Any:
    """One line of the lens: its image, whose rows are the layers and whose columns are positions."""
    from matplotlib.patches import Rectangle

    layers = len(readings.best)
    shown = slice(line.start, line.stop)
    image = axes.imshow(_numbers(readings.probability[:, shown].flip(0)), cmap=shades(), vmin=0, vmax=1, aspect="auto")
    for row, (column, position) in product(range(layers), enumerate(line)):
        layer = layers - 1 - row
        best = int(readings.best[layer, position])
        color = letters(shades()(readings.probability[layer, position].item()))
        axes.text(column, row, legible(words[best], LONGEST), ha="center", va="center", fontsize=7, color=color)
        if position + 1 < len(ids) and best == ids[position + 1]:
            corner = (column - 0.46, row - 0.43)
            axes.add_patch(Rectangle(corner, 0.92, 0.86, fill=False, color=ORANGE, linewidth=1.5))
    axes.set_xlim(-0.5, min(LINE, readings.best.shape[1]) - 0.5)  # the last line may be shorter
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    axes.set_xticks(range(len(line)), [legible(words[ids[position]], LONGEST) for position in line])
    axes.set_yticks(range(layers), [*(f"layer {layer}" for layer in reversed(range(layers - 1))), "embedding"])
    above = axes.secondary_xaxis("top")
    following = [legible(words[ids[place + 1]], LONGEST) if place + 1 < len(ids) else "" for place in line]
    above.set_ticks(range(len(line)), following)
    above.tick_params(length=0, labelsize=7)
    above.spines[:].set_visible(False)
    for height, name in ((1, "next token"), (0, "token read")):
        place: dict[str, Any] = dict(xytext=(-4, 5 if height else -9), textcoords="offset points")
        axes.annotate(name, (0, height), xycoords="axes fraction", ha="right", fontsize=7, style="italic", **place)
    return image
