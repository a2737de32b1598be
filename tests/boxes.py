"""Texts of a figure that overlap, or leave it, by the boxes of its artists as they are drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

TOLERANCE = 1.0
"""Pixels by which two boxes may overlap: they are a little larger than the letters."""


@contextmanager
def crowded_texts() -> Iterator[list[str]]:
    """A list that receives a line for each fault of each figure that is drawn in the `with` block.

    What counts is drawn: labels of ticks out of range, of hidden axes, and empty ones do not.
    """
    draw_figure, draw_text = Figure.draw, Text.draw
    faults: list[str] = []
    drawn: list[Text] = []

    def note(text: Text, renderer, *arguments, **options) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw_text(text, renderer, *arguments, **options)

    def check(figure: Figure, renderer) -> None:
        drawn.clear()
        draw_figure(figure, renderer)
        faults.extend(find_faults(figure, list(drawn), renderer))

    Figure.draw, Text.draw = check, note
    try:
        yield faults
    finally:
        Figure.draw, Text.draw = draw_figure, draw_text


def find_faults(figure: Figure, texts: list[Text], renderer) -> list[str]:
    """A line for each text beyond the figure, and for each two that overlap."""
    boxes = [(text.get_text(), box(text, renderer)) for text in texts]
    low, high = figure.bbox.min - TOLERANCE, figure.bbox.max + TOLERANCE
    faults = [f"{name!r} leaves the figure" for name, each in boxes if (each < low).any() or (each > high).any()]
    pairs = combinations(boxes, 2)
    return faults + [f"{a!r} overlaps {b!r}" for (a, one), (b, other) in pairs if overlap(one, other)]


def box(text: Text, renderer) -> np.ndarray:
    """The corners of a text, in order around it, (4, 2), in pixels; turned as the text is."""
    around = text.get_window_extent(renderer)
    angle = text.get_rotation()
    text.set_rotation(0)
    flat = text.get_window_extent(renderer)
    text.set_rotation(angle)
    half = np.array([flat.width, flat.height]) / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    sin, cos = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    return corners @ np.array([[cos, sin], [-sin, cos]]) + (around.min + around.max) / 2


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two rectangles overlap by more than the tolerance: on no side's direction are they apart."""
    for corners in (one, other):
        for side in (corners[1] - corners[0], corners[2] - corners[1]):
            if not side.any():
                return False
            along, against = (each @ side / np.linalg.norm(side) for each in (one, other))
            if along.max() - against.min() <= TOLERANCE or against.max() - along.min() <= TOLERANCE:
                return False
    return True
