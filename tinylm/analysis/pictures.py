"""Figures of attention maps, head scores, activations, gradients and the logit lens, drawn without pyplot.

Quantities are drawn from white to dark in one hue, which survives photocopying and colour blindness.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tinylm.analysis.activations import FAR, Activations
from tinylm.analysis.gradients import BINS, DECADES, Gradients
from tinylm.analysis.lens import Readings
from tinylm.runs.plots import plain
from tinylm.runs.style import BLUE, GREEN, GREY, ORANGE, letters, new_figure, shades, style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = 32  # most tokens written along the axes of a map
MAPS = 36  # most maps whose axes have tokens; writing more takes minutes
RARE = 1e-3  # histograms end where no part has more than this share of its weights
LINES = {"stream": (BLUE, "o-"), "attention": (ORANGE, "s--"), "feedforward": (GREEN, "^-."), "units": (GREY, "D:")}


def _figure(width: float, height: float, title: str) -> "Figure":
    figure = new_figure(width, height)
    figure.suptitle(title)
    return figure


def _numbers(tensor: Tensor) -> "np.ndarray":
    return tensor.detach().float().cpu().numpy()


def _write_tokens(axis: Any, labels: Sequence[str], **options: Any) -> None:
    axis.set_ticks(range(len(labels)), [plain(label) for label in labels], **options)


def _tidy(*panels: "Axes") -> None:
    for axes in panels:
        axes.grid(True)


@style()
def draw_attention(maps: Tensor, labels: Sequence[str], notes: Sequence[Sequence[str]], title: str) -> "Figure":
    """The attention maps of one text, (layers, H, T, T): layers from top to bottom, heads from left to right.

    `notes` are the headings of the maps. `labels` are the text's tokens, written along the axes if there are few.
    """
    from matplotlib.colors import PowerNorm

    layers, heads, T, _ = maps.shape
    side = max(1.7, 0.11 * T) if T <= LABELS else 1.7
    figure = _figure(side * heads + 1.8, side * layers + 1.3, title)
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    image = None
    for layer, head in product(range(layers), range(heads)):
        axes: Axes = grid[layer, head]
        # square root: weights of a few hundredths stay visible
        image = axes.imshow(_numbers(maps[layer, head]), cmap=shades(), norm=PowerNorm(0.5, 0, 1))
        axes.set_title(notes[layer][head], fontsize=8)
        axes.tick_params(length=0, labelsize=6)
        if T <= LABELS and layers * heads <= MAPS:
            _write_tokens(axes.xaxis, labels, rotation=90)
            _write_tokens(axes.yaxis, labels)
        if head == 0:
            axes.set_ylabel(f"layer {layer}")
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid.flat), ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], shrink=0.6)
    bar.set_label("weight of a query (row) on a key (column)")
    return figure


@style()
def draw_heads(tables: dict[str, Tensor], title: str) -> "Figure":
    """Scores of every head, (layers, H), one panel for each named score."""
    layers, heads = next(iter(tables.values())).shape
    figure = _figure(max(0.75 * heads, 2.6) * len(tables), max(0.45 * layers, 1.2) + 1.2, title)
    for axes, (name, scores) in zip(figure.subplots(1, len(tables), squeeze=False).flat, tables.items(), strict=True):
        top = max(scores.nan_to_num().max().item(), 1.0)
        axes.imshow(_numbers(scores), cmap=shades(), vmin=0, vmax=top, aspect="auto")
        axes.set(title=name, xlabel="head", ylabel="layer", xticks=range(heads), yticks=range(layers))
        for layer, head in product(range(layers), range(heads)):
            value = scores[layer, head].item()
            axes.text(
                head, layer, f"{value:.2f}", ha="center", va="center", color=letters(shades()(value / top)), fontsize=8
            )
    return figure


@style()
def draw_activations(found: Sequence[Activations], title: str) -> "Figure":
    """Standard deviation, largest value, outliers and dead units by layer, one line for each place."""
    panels: dict[str, Callable[[Activations], float]] = {
        "standard deviation": lambda each: each.std,
        "largest, in standard deviations": lambda each: each.largest,
        f"outliers beyond {FAR:g} standard deviations, %": lambda each: 100 * each.outliers,
        "dead units, %": lambda each: 100 * each.dead,
    }
    figure = _figure(9, 6, title)
    layers = sorted({each.layer for each in found})
    for axes, (name, value) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for place, (color, form) in LINES.items():
            # the embedding is the stream before the first block
            ours = [each for each in found if each.place == place or (place, each.place) == ("stream", "embedding")]
            axes.plot([e.layer for e in ours], [value(e) for e in ours], form, color=color, markersize=4, label=place)
        axes.set(title=name, xlabel="layer")
        axes.set_xticks(layers, ["embedding" if layer < 0 else str(layer) for layer in layers])
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) if name.endswith("%") else None)
    _tidy(*figure.axes)
    figure.axes[0].legend(frameon=False)
    return figure


@style()
def draw_gradients(found: Sequence[Gradients], title: str) -> "Figure":
    """The gradient norm, the noise scale and the histogram of gradient sizes of every part."""
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = range(len(found))
    figure = _figure(11, 0.28 * len(found) + 1.8, title)
    norms, scales, sizes = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 2))
    norms.plot([each.norm for each in found], rows, "o", color=BLUE)
    norms.set(title="norm")
    norms.set_yticks(rows, [each.part for each in found])
    shown = [(each.noise_scale, row) for row, each in zip(rows, found, strict=True) if each.signal > 0]
    scales.plot([scale for scale, _ in shown], [row for _, row in shown], "s", color=ORANGE)
    scales.set(title="noise scale (sequences)")
    for row in set(rows) - {row for _, row in shown}:
        place = dict(transform=scales.get_yaxis_transform(), ha="center", va="center")
        scales.text(0.5, row, "hidden by noise", size=7, **place)
    for axes in (norms, scales):
        if any(value > 0 for line in axes.lines for value in line.get_xdata()):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    _tidy(norms, scales)
    _draw_histograms(figure, sizes, [each.histogram for each in found])
    norms.set_ylim(len(found) - 0.5, -0.5)  # the embedding on top
    return figure


def _draw_histograms(figure: "Figure", axes: "Axes", histograms: Sequence[Sequence[int]]) -> None:
    shares = [[count / max(sum(counts), 1) for count in counts] for counts in histograms]
    used = [column for column in range(BINS) if any(share[column] > RARE for share in shares)]
    if used:
        first, last = used[0], used[-1] + 1
        width = (DECADES[1] - DECADES[0]) / BINS
        extent = (DECADES[0] + first * width, DECADES[0] + last * width, len(shares) - 0.5, -0.5)
        shares = [share[first:last] for share in shares]
        image = axes.imshow(shares, cmap=shades(), aspect="auto", extent=extent, vmin=0, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="share of the weights")
    axes.set(title="size of a weight's gradient", xlabel="power of ten")


@style()
def draw_lens(readings: Readings, ids: Sequence[int], words: Sequence[str], title: str) -> "Figure":
    """The prediction of each layer after each token of a text, last layer on top; the darker, the more probable.

    Correct predictions of the next token are framed. `words` are all tokens of the vocabulary.
    """
    from matplotlib.patches import Rectangle

    layers, T = readings.best.shape
    figure = _figure(0.6 * T + 2.2, 0.34 * layers + 1.6, title)
    axes = figure.subplots()
    image = axes.imshow(_numbers(readings.probability.flip(0)), cmap=shades(), vmin=0, vmax=1, aspect="auto")
    for row, position in product(range(layers), range(T)):
        layer = layers - 1 - row
        best, color = (
            int(readings.best[layer, position]),
            letters(shades()(readings.probability[layer, position].item())),
        )
        word = words[best] if len(words[best]) <= 9 else words[best][:8] + "…"
        axes.text(position, row, plain(word), ha="center", va="center", fontsize=7, color=color)
        if position + 1 < T and best == ids[position + 1]:
            corner = (position - 0.46, row - 0.43)
            axes.add_patch(Rectangle(corner, 0.92, 0.86, fill=False, color=ORANGE, linewidth=1.5))
    _write_tokens(axes.xaxis, [words[token] for token in ids], rotation=90, fontsize=8)
    axes.set_yticks(range(layers), [*(f"layer {layer}" for layer in reversed(range(layers - 1))), "embedding"])
    axes.set_xlabel("after this token (framed: correct prediction of the next)")
    figure.colorbar(image, ax=axes, label="probability", aspect=10, pad=0.01)
    return figure
