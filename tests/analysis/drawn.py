"""Faults of a drawing: words that overlap, leave the canvas, or leave the box that they stand in."""

from itertools import combinations

from tinylm.analysis.drawing import Circle, Drawing, Line, Rectangle, Words

Box = tuple[float, float, float, float]  # left, top, right, bottom


def meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def faults(drawing: Drawing) -> list[str]:
    """One line for each fault; boxes are compared with the words that begin in them."""
    words = [shape for shape in drawing.shapes if isinstance(shape, Words)]
    boxes = [shape for shape in drawing.shapes if isinstance(shape, Rectangle) and shape.fill != "frame"]
    found = [f"{a.text!r} and {b.text!r} overlap" for a, b in combinations(words, 2) if meet(a.box, b.box)]
    for each in words:
        left, top, right, bottom = each.box
        if left < 0 or top < 0 or right > drawing.width or bottom > drawing.height:
            found.append(f"{each.text!r} leaves the canvas")
        for box in boxes:
            inside = box.x <= (left + right) / 2 <= box.x + box.width and box.y <= each.y <= box.y + box.height
            if inside and (left < box.x or right > box.x + box.width or bottom > box.y + box.height):
                found.append(f"{each.text!r} leaves its box")
    return found + [f"{line} crosses {each.text!r}" for each in words for line in drawing.shapes if crosses(line, each)]


def crosses(shape: object, words: Words) -> bool:
    """Whether a line or a circle runs through words; the lines of these drawings are horizontal or vertical."""
    if isinstance(shape, Circle):
        x, y, r = shape.x, shape.y, shape.radius
        return meet((x - r, y - r, x + r, y + r), words.box) and shape.fill == "paper"
    if not isinstance(shape, Line):
        return False
    pairs = zip(shape.points, shape.points[1:], strict=False)
    straight = [(a, b) for a, b in pairs if a[0] == b[0] or a[1] == b[1]]
    return any(
        meet((min(a[0], b[0]) - 0.5, min(a[1], b[1]) - 0.5, max(a[0], b[0]) + 0.5, max(a[1], b[1]) + 0.5), words.box)
        for a, b in straight
    )
