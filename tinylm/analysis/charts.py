"""Figures of embeddings, weights, the loss by position and the surprise at each choice."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tinylm.analysis.choices import Surprise
from tinylm.analysis.embeddings import EmbeddingMap
from tinylm.analysis.positions import PositionLoss
from tinylm.analysis.weights import Matrix
from tinylm.runs.plots import plain
from tinylm.runs.style import BLUE, GREEN, GREY, ORANGE, new_figure, shades, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOMINANT = 5  # the axis is logarithmic if the largest singular value exceeds the second by this factor
CLOSE = 0.4  # a line joins neighbours whose cosine is at least this
ROWS = 60  # most choices in a figure
PROBABILITIES = {"1": 1.0, "1/4": 1 / 4, "1/16": 1 / 16, "1/64": 1 / 64, "1/1000": 1 / 1000}


@style()
def draw_embeddings(found: EmbeddingMap, labels: Sequence[str], title: str) -> "Figure":
    """Tokens in two dimensions. The first of `found.ids` are labelled first, where there is room.

    A line joins a labelled token to its nearest neighbour, if the cosine is at least `CLOSE`.
    """
    figure = new_figure(7, 7)
    axes = figure.subplots()
    x, y = found.points.T.tolist()
    axes.plot(x, y, ".", color=GREY, markersize=4)
    for name, share in zip("xy", found.shares.tolist(), strict=True):
        number = "first" if name == "x" else "second"
        axes.set(**{f"{name}label": f"{number} principal component ({share:.0%} of the variance)"})
    axes.set_title(plain(title))
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    places = {token: place for place, token in enumerate(found.ids.tolist())}
    for place in _label(axes, x, y, labels):
        axes.plot(x[place], y[place], "o", color=BLUE, markersize=3)
        if found.cosines[place, 0] < CLOSE:
            continue
        near = places[int(found.neighbours[place, 0])]
        axes.plot([x[place], x[near]], [y[place], y[near]], "-", color=BLUE, linewidth=0.8, alpha=0.6)
    return figure


def _label(axes: "Axes", x: Sequence[float], y: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Writes the labels that overlap no earlier one; returns their indices."""
    axes.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue] (settles the place of the axes)
    inside, taken, written = axes.get_window_extent(), [], []
    for place, label in enumerate(labels):
        text = axes.annotate(
            plain(label.strip("·") or label),
            (x[place], y[place]),
            (3, 3),
            textcoords="offset points",
            fontsize=8,
            annotation_clip=False,
        )
        box = text.get_window_extent().padded(1)
        if any(box.overlaps(other) for other in taken) or not _within(box, inside):
            text.remove()
        else:
            taken.append(box)
            written.append(place)
    return written


def _within(box: Any, outer: Any) -> bool:
    return outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1


@style()
def draw_weights(found: Sequence[Matrix], title: str) -> "Figure":
    """The distribution and the singular values of every kind of matrix; deeper layers have stronger colours."""
    kinds = list(dict.fromkeys(each.kind for each in found))
    layers = max(each.layer for each in found) + 1
    figure = new_figure(7, 1.5 * len(kinds) + 1.1)
    figure.suptitle(plain(title))
    for row, kind in zip(figure.subplots(len(kinds), 2, squeeze=False), kinds, strict=True):
        for each in (each for each in found if each.kind == kind):
            look = {"color": shades()(0.35 + 0.65 * (each.layer + 1) / max(layers, 1)), "linewidth": 1.2}
            middles = (each.edges[1:] + each.edges[:-1]) / 2
            row[0].plot(middles, each.density, label=_layer(each.layer), **look)
            row[1].plot(range(1, len(each.singular) + 1), each.singular, **look)
        rows, columns = next(each.shape for each in found if each.kind == kind)
        row[0].set(ylabel=f"{kind}\n{rows:,} x {columns:,}", yticks=[])
        if any(each.singular[:2].min() * DOMINANT < each.singular[0] for each in found if each.kind == kind):
            row[1].set_yscale("log")
        else:
            row[1].set_ylim(0)
    left, right = figure.axes[-2:]
    left.set_xlabel("weight (height: density)")
    right.set_xlabel("singular values, largest first (number)")
    lines = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    few = [*lines] if len(lines) <= 8 else [*lines][:: -(-len(lines) // 8)]
    figure.legend([lines[label] for label in few], few, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _layer(layer: int) -> str:
    return "outside the blocks" if layer < 0 else f"layer {layer}"


@style()
def draw_positions(found: PositionLoss, truth: PositionLoss | None, title: str) -> "Figure":
    """The loss by position with its standard error, and the best possible one if it is known."""
    figure = new_figure(7, 4 if truth is None else 5.5)
    axes, *below = figure.subplots(1 if truth is None else 2, squeeze=False, sharex=True).flat
    positions = range(len(found.mean))
    low, high = (found.mean + sign * found.error.nan_to_num() for sign in (-1, 1))
    axes.fill_between(positions, low, high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(positions, found.mean, color=BLUE, label=f"model  {found.mean.mean():.3f}")
    if truth is not None:
        axes.plot(positions, truth.mean, "--", color=GREEN, label=f"best possible  {truth.mean.mean():.3f}")
        excess = (found.mean - truth.mean).tolist()
        below[0].bar(positions, excess, color=[ORANGE if each > 0 else BLUE for each in excess], width=1.0)
        below[0].set(ylabel="model less best possible (nats)")
    axes.set(title=plain(title), ylabel="loss (nats per token)")
    axes.set_ylim(0)
    figure.axes[-1].set_xlabel("position in the sequence (band: standard error)")
    axes.legend(frameon=False)
    return figure


@style()
def draw_choices(found: Sequence[Surprise], places: Sequence[int], words: Sequence[str], title: str) -> "Figure":
    """Model and truth at some tokens of a text, one below the other.

    Args:
        found: all tokens of the text
        places: the tokens to draw
        words: every token of the vocabulary, as text
        title: the title
    """
    places = places[:ROWS]
    figure = new_figure(6, 0.21 * len(places) + 1.7)
    axes = figure.subplots()
    for row, place in enumerate(places):
        each = found[place]
        worse = each.model > each.truth
        axes.plot([each.truth, each.model], [row, row], "-", color=ORANGE if worse else BLUE, linewidth=2, alpha=0.55)
    rows = range(len(places))
    axes.plot([found[place].truth for place in places], rows, "|", color=GREEN, markersize=11, markeredgewidth=2.5,
              label="true probability")  # fmt: skip
    axes.plot([found[place].model for place in places], rows, "o", color=BLUE, markersize=5, label="model")
    axes.set_yticks(rows, [plain(each) for each in _phrases(found, places, words)])
    axes.set(ylim=(len(places) - 0.4, -0.6), xlabel="surprise (nats)")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(True, axis="x")
    top = axes.secondary_xaxis("top", functions=(lambda nats: nats, lambda nats: nats))
    ticks = {name: share for name, share in PROBABILITIES.items() if -math.log(share) <= axes.get_xlim()[1]}
    top.set_xticks([-math.log(share) for share in ticks.values()], [*ticks])
    top.set_xlabel("probability")
    figure.suptitle(plain(title))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _phrases(found: Sequence[Surprise], places: Sequence[int], words: Sequence[str]) -> Iterator[str]:
    """The token at each place, after the one before it."""
    for place in places:
        before = words[found[place - 1].id] if place else ""
        yield f"{before}{words[found[place].id]}".replace("·", " ").strip()
