"""Pictures of what was found inside a model: PNG to be looked at, SVG to be printed. Made without pyplot.

Quantities from nothing to much are drawn from white to dark in one hue, so that they survive a copier and any eye.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tinylm.analysis.activations import FAR, Activations
from tinylm.analysis.gradients import BINS, DECADES, Gradients
from tinylm.analysis.lens import Readings
from tinylm.runs.plots import BLUE, GREEN, GREY, ORANGE, plain

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = 32
"""The most tokens that are written along the axes of a map."""
MAPS = 36
"""Of more maps than that none has its tokens written, which would take minutes."""
RARE = 1e-3
"""Histograms end where no part has more than this share of its weights."""


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def _shades() -> Any:
    """From white over BLUE to nearly black."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("tinylm", ["#ffffff", "#9ecae1", BLUE, "#08264a"])


def _numbers(tensor: Tensor) -> "np.ndarray":
    return tensor.detach().float().cpu().numpy()


def _write_tokens(axis: Any, labels: Sequence[str], **options: Any) -> None:
    axis.set_ticks(range(len(labels)), [plain(label) for label in labels], **options)


def draw_attention(maps: Tensor, labels: Sequence[str], notes: Sequence[Sequence[str]], title: str) -> "Figure":
    """The weights of every head while one text is read: layers from top to bottom, heads from left to right.

    Args:
        maps: as `attention_maps` gives them, of one text: (layers, H, T, T)
        labels: the text's tokens; they are written where they are few enough
        notes: of every layer and head, what stands above its map
        title: what stands above all
    """
    from matplotlib.colors import PowerNorm

    layers, heads, T, _ = maps.shape
    side = max(1.7, 0.11 * T) if T <= LABELS else 1.7
    figure = _figure(side * heads + 1.8, side * layers + 1.3, title)
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    image = None
    for layer, head in ((layer, head) for layer in range(layers) for head in range(heads)):
        axes: Axes = grid[layer, head]
        # square root: a weight of a few hundredths is still to be seen
        image = axes.imshow(_numbers(maps[layer, head]), cmap=_shades(), norm=PowerNorm(0.5, 0, 1))
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


def draw_heads(tables: dict[str, Tensor], title: str) -> "Figure":
    """A figure of every head, (layers, H), as a small table of its own for each name."""
    layers, heads = next(iter(tables.values())).shape
    figure = _figure(max(0.75 * heads, 2.6) * len(tables), max(0.45 * layers, 1.2) + 1.2, title)
    for axes, (name, table) in zip(figure.subplots(1, len(tables), squeeze=False).flat, tables.items(), strict=True):
        top = max(table.nan_to_num().max().item(), 1.0)
        axes.imshow(_numbers(table), cmap=_shades(), vmin=0, vmax=top, aspect="auto")
        axes.set(title=name, xlabel="head", xticks=range(heads), yticks=range(layers))
        axes.set_ylabel("layer")
        for layer, head in ((layer, head) for layer in range(layers) for head in range(heads)):
            value = table[layer, head].item()
            axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color=_letters(value / top), fontsize=8)
    return figure


def _letters(darkness: float) -> str:
    return "white" if darkness > 0.55 else "black"


def draw_activations(found: Sequence[Activations], title: str) -> "Figure":
    """Spread, largest value, outliers and dead units against depth, a line for each place."""
    places = (
        ("stream", BLUE, "o-"),
        ("attention", ORANGE, "s--"),
        ("feedforward", GREEN, "^-."),
        ("units", GREY, "D:"),
    )
    panels: tuple[tuple[str, Callable[[Activations], float]], ...] = (
        ("standard deviation", lambda each: each.std),
        ("largest, in standard deviations", lambda each: each.largest),
        (f"outliers beyond {FAR:g} standard deviations, %", lambda each: 100 * each.outliers),
        ("dead units, %", lambda each: 100 * each.dead),
    )
    figure = _figure(9, 6, title)
    grid = figure.subplots(2, 2).flat
    layers = sorted({each.layer for each in found})
    for axes, (name, value) in zip(grid, panels, strict=True):
        for place, color, style in places:
            # the embedding is the stream before the first block
            ours = [each for each in found if each.place == place or (place, each.place) == ("stream", "embedding")]
            axes.plot([e.layer for e in ours], [value(e) for e in ours], style, color=color, markersize=4, label=place)
        axes.set(title=name, xlabel="layer")
        axes.set_xticks(layers, ["embedding" if layer < 0 else str(layer) for layer in layers])
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) if name.endswith("%") else None)
    _finish(*figure.axes)
    figure.axes[0].legend(frameon=False)
    return figure


def draw_gradients(found: Sequence[Gradients], title: str) -> "Figure":
    """For every part of the network its norm, signal beside noise, and how the sizes are distributed."""
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = range(len(found))
    figure = _figure(11, 0.28 * len(found) + 1.8, title)
    norms, ratio, sizes = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 2))
    norms.plot([each.norm for each in found], rows, "o", color=BLUE)
    norms.set(title="norm")
    norms.set_yticks(rows, [each.part for each in found])
    shown = [(row, each.noise_scale) for row, each in zip(rows, found, strict=True) if each.noise_scale < float("inf")]
    ratio.plot([scale for _, scale in shown], [row for row, _ in shown], "s", color=ORANGE)
    ratio.set(title="noise scale (sequences)")
    for row in set(rows) - {row for row, _ in shown}:
        ratio.text(0.5, row, "hidden by noise", transform=ratio.get_yaxis_transform(), ha="center", va="center", size=7)
    for axes in (norms, ratio):
        if any(value > 0 for line in axes.lines for value in line.get_xdata()):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    _finish(norms, ratio)
    shares = [[count / max(sum(each.histogram), 1) for count in each.histogram] for each in found]
    width = (DECADES[1] - DECADES[0]) / BINS
    used = [column for column in range(BINS) if any(share[column] > RARE for share in shares)]
    if used:
        first, last = used[0], used[-1] + 1
        extent = (DECADES[0] + first * width, DECADES[0] + last * width, len(found) - 0.5, -0.5)
        shares = [share[first:last] for share in shares]
        image = sizes.imshow(shares, cmap=_shades(), aspect="auto", extent=extent, vmin=0, interpolation="nearest")
        figure.colorbar(image, ax=sizes, label="share of the weights")
    sizes.set(title="size of a weight's gradient", xlabel="power of ten")
    sizes.spines[["top", "right"]].set_visible(False)
    norms.set_ylim(len(found) - 0.5, -0.5)  # as the text meets them, from top to bottom
    return figure


def _finish(*panels: "Axes") -> None:
    for axes in panels:
        axes.grid(color=GREY, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def draw_lens(readings: Readings, ids: Sequence[int], words: Sequence[str], title: str) -> "Figure":
    """What each layer would say after each token of a text, the last layer on top; the darker the surer.

    Args:
        readings: of the text
        ids: the text's tokens, written below; where a layer is right about the next one, its word is framed
        words: of every token of the vocabulary
        title: what stands above
    """
    from matplotlib.patches import Rectangle

    layers, T = readings.best.shape
    figure = _figure(0.6 * T + 2.2, 0.34 * layers + 1.6, title)
    axes = figure.subplots()
    image = axes.imshow(_numbers(readings.probability.flip(0)), cmap=_shades(), vmin=0, vmax=1, aspect="auto")
    for row, position in ((row, position) for row in range(layers) for position in range(T)):
        layer = layers - 1 - row
        best, color = int(readings.best[layer, position]), _letters(readings.probability[layer, position].item())
        axes.text(position, row, _short(words[best]), ha="center", va="center", fontsize=7, color=color)
        if position + 1 < T and best == ids[position + 1]:
            axes.add_patch(
                Rectangle((position - 0.46, row - 0.43), 0.92, 0.86, fill=False, color=ORANGE, linewidth=1.5)
            )
    _write_tokens(axes.xaxis, [words[token] for token in ids], rotation=90, fontsize=8)
    axes.set_yticks(range(layers), [*(f"layer {layer}" for layer in reversed(range(layers - 1))), "embedding"])
    axes.set_xlabel("after this token (framed: right about the next one)")
    figure.colorbar(image, ax=axes, label="probability", aspect=10, pad=0.01)
    return figure


def _short(word: str) -> str:
    return plain(word if len(word) <= 9 else word[:8] + "…")
