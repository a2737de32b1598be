"""Makes the drawings of the tutorial: the residual stream, a rotation, LoRA, the cache, and the network `small`.

    python docs/tutorial/drawings.py [FOLDER]

Writes SVG files into FOLDER, by default docs/tutorial; the network goes to the folder above. Angles, sizes and counts
come from the code that the chapters explain.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from tinylm.analysis.drawing import Circle, Drawing, Line, Rectangle, Words
from tinylm.analysis.network import read_network
from tinylm.analysis.network_drawing import draw_network
from tinylm.model import preset
from tinylm.model.lora import LoRALinear
from tinylm.model.positional import rotary_table
from tinylm.model.size import empty_model

HERE = Path(__file__).resolve().parent
WIDTH = 390
VOCABULARY = 1486  # of `small` on the stories
SCALE = "\u03b1/r"  # alpha / rank


def residual_stream() -> Drawing:
    """Two blocks: each layer reads the stream through a norm, and adds its output to it."""
    drawing = Drawing(
        WIDTH, 388, "The residual stream",
        "The embedding e flows down; attention and feed-forward layers read the sum so far and add their outputs.",
    )  # fmt: skip
    x, y, begin = 34, 40, 64
    drawing.add(Words(12, 22, "The stream is the sum of what was added to it", 13, bold=True))
    drawing.add(Rectangle(12, y, 90, 24), Words(57, y + 16, "embedding", 11, "middle"))
    parts = ["e"]
    tiles(drawing, begin + 8, parts)
    layers = [
        (name, f"{letter}{number}") for number in "₁₂" for name, letter in (("attention", "a"), ("feed-forward", "f"))
    ]
    for name, letter in layers:
        read, add = begin + 24, begin + 58
        drawing.add(Line(((x, begin), (x, add)), "blue", 3))
        drawing.arrow((x, read), (62, read))
        drawing.add(Rectangle(62, read - 12, 44, 24), Words(84, read + 4, "norm", 11, "middle"))
        drawing.arrow((106, read), (124, read))
        drawing.add(Rectangle(124, read - 12, 86, 24), Words(167, read + 4, name, 11, "middle"))
        drawing.arrow((167, read + 12), (167, add), (x + 8, add))
        drawing.add(Words(175, add - 4, f"adds {letter}", 11, color="faint"))
        drawing.plus(x, add)
        parts.append(letter)
        begin = add + 8
        tiles(drawing, begin + 4, parts)
    end = begin + 26
    drawing.add(Line(((x, begin), (x, end)), "blue", 3, arrow=True))
    drawing.add(Rectangle(12, end, 110, 24), Words(67, end + 16, "norm, head", 11, "middle"))
    drawing.arrow((122, end + 12), (146, end + 12), color="blue", width=3)
    drawing.add(Words(152, end + 16, "logits", 12))
    return drawing


def tiles(drawing: Drawing, y: float, parts: list[str]) -> None:
    """A row of what the stream is the sum of."""
    pitch, left = 33, 224
    for place, part in enumerate(parts):
        color = {"e": "faint", "a": "blue", "f": "orange"}[part[0]]
        drawing.add(Rectangle(left + pitch * place, y, 22, 20, "paper", color))
        drawing.add(Words(left + pitch * place + 11, y + 14, part, 12, "middle", color))
        if place:
            drawing.add(Words(left + pitch * place - 5.5, y + 14, "+", 10, "middle", "faint"))


def rotation() -> Drawing:
    """A query and a key at two pairs of positions that are equally far apart."""
    drawing = Drawing(
        WIDTH, 292, "A rotation of rotary positions",
        "Query and key turn with their positions; two positions apart, the angle between them is the same.",
    )  # fmt: skip
    drawing.add(Words(12, 22, "Two apart: the same angle, the same product", 13, bold=True))
    cosines, sines = rotary_table(16, 4, 10000.0)[:, :, 0]  # of the first pair of coordinates
    for x, places in ((102, (3, 1)), (288, (10, 8))):
        y, radius = 142, 78
        drawing.add(Circle(x, y, radius, "none", "edge"))
        ends = []
        for (name, color, first), place in zip((("query", "blue", 0.3), ("key", "orange", 1.2)), places, strict=True):
            turned = first + math.atan2(sines[place], cosines[place])
            ends.append(turned)
            drawing.add(Line(ray(x, y, radius, first), color, 1.3, dashed=True))
            drawing.add(Line(ray(x, y, radius, turned), color, 2.4, arrow=True))
            drawing.add(Line(arc(x, y, 26 if name == "query" else 40, first, turned), color, 1.1))
        drawing.add(Line(arc(x, y, radius - 14, ends[1], ends[0]), "green", 2.4))
        drawing.add(Words(x, 240, f"query at {places[0]}, key at {places[1]}", 12, "middle"))
        degrees = math.degrees((ends[0] - ends[1]) % (2 * math.pi))
        drawing.add(Words(x, 256, f"between them: {degrees:.0f}°", 11, "middle", "green"))
    drawing.add(Line(((12, 275), (32, 275)), "blue", 2.4, arrow=True), Words(36, 279, "query", 11))
    drawing.add(Line(((82, 275), (102, 275)), "orange", 2.4, arrow=True), Words(106, 279, "key", 11))
    drawing.add(
        Line(((140, 275), (160, 275)), "faint", 1.3, dashed=True), Words(164, 279, "before they are turned", 11)
    )
    return drawing


def ray(x: float, y: float, length: float, angle: float) -> tuple[tuple[float, float], ...]:
    """A line from the middle of a circle outwards; angles turn counterclockwise."""
    return (x, y), (round(x + length * math.cos(angle), 1), round(y - length * math.sin(angle), 1))


def arc(x: float, y: float, radius: float, begin: float, end: float) -> tuple[tuple[float, float], ...]:
    """Points on a circle, counterclockwise from one angle to another."""
    span = (end - begin) % (2 * math.pi)
    count = max(2, round(span * 10))
    return tuple(ray(x, y, radius, begin + span * i / count)[1] for i in range(count + 1))


def lora() -> Drawing:
    """A frozen matrix and the product of two thin ones, in proportion."""
    layer = LoRALinear(nn.Linear(128, 128, bias=False))
    layer.add("default", rank=8, alpha=16.0, dropout=0.0)
    (rank, inputs), outputs = layer.lora_a["default"].shape, layer.out_features
    trained = layer.lora_a["default"].numel() + layer.lora_b["default"].numel()
    drawing = Drawing(
        WIDTH,
        232,
        "LoRA: W + B A",
        "A frozen square matrix W, plus the product of a tall matrix B and a wide matrix A.",
    )
    drawing.add(Words(12, 22, f"y = W x + {SCALE} · B A x", 13, bold=True))
    top, side = 52, 120
    thin = side * rank / inputs
    drawing.add(Rectangle(40, top, side, side, "box", "edge", 1))
    drawing.add(Words(40 + side / 2, top + 56, "W", 16, "middle", bold=True))
    drawing.add(Words(40 + side / 2, top + 74, "frozen", 11, "middle", "faint"))
    drawing.add(Words(34, top + 64, f"{outputs}", 11, "end", "faint"))
    drawing.add(Words(40 + side / 2, top - 6, f"{inputs}", 11, "middle", "faint"))
    drawing.add(Words(190, top + 66, f"+ {SCALE} ·", 14, "middle"))
    left = 228
    drawing.add(Rectangle(left, top, thin, side, "orange", "none", 1))
    drawing.add(Words(left + thin / 2, top - 6, f"r = {rank}", 11, "middle", "faint"))
    drawing.add(Words(left + 16, top + 66, "B", 16, bold=True))
    drawing.add(Rectangle(left + 32, top, side, thin, "orange", "none", 1))
    drawing.add(Words(left + 32 + side / 2, top - 6, f"{inputs}", 11, "middle", "faint"))
    drawing.add(Words(left + 32 + side / 2, top + 26, "A", 16, "middle", bold=True))
    drawing.add(Words(left + 44, top + 92, "trained;", 11, color="orange"))
    drawing.add(Words(left + 44, top + 107, "B is 0 at first", 11, color="orange"))
    counts = f"W: {layer.weight.numel():,} numbers.  B and A: {trained:,}, an eighth of them."
    drawing.add(Words(12, 200, counts, 12))
    drawing.add(Words(12, 218, f"After training W + {SCALE} · B A is one matrix again.", 12))
    return drawing


def cache() -> Drawing:
    """Which keys and values are computed for each new token, without a cache and with it."""
    text, side = "hello", 30
    drawing = Drawing(
        WIDTH, 300, "The key/value cache",
        "Without a cache each new token computes all keys and values again; with it, one new pair is computed.",
    )  # fmt: skip
    drawing.add(Words(12, 22, "Keys and values computed for each new token", 13, bold=True))
    for left, title, stored in ((30, "without a cache", False), (216, "with a cache", True)):
        drawing.add(Words(left, 50, title, 12, bold=True))
        count = 0
        for position, letter in enumerate(text):
            drawing.add(Words(left + side * position + side / 2, 70, letter, 12, "middle"))
            drawing.add(Words(left - 8, 78 + side * position + side / 2 + 4, letter, 12, "end"))
            for key in range(len(text)):
                new = key == position or not stored
                kind = "none" if key > position else "orange" if new else "box"
                count += key <= position and new
                x, y = left + side * key + 2, 78 + side * position + 2
                drawing.add(Rectangle(x, y, side - 4, side - 4, kind, "edge", 3))
        drawing.add(Words(left, 250, f"{count} computed in all", 12))
    drawing.add(Rectangle(12, 271, 16, 16, "orange", "edge", 3), Words(34, 283, "computed", 11))
    drawing.add(Rectangle(112, 271, 16, 16, "box", "edge", 3), Words(134, 283, "read from the cache", 11))
    drawing.add(Rectangle(272, 271, 16, 16, "none", "edge", 3), Words(294, 283, "not there yet", 11))
    return drawing


def network() -> Drawing:
    """The network of `small` with the vocabulary of the stories."""
    return draw_network(read_network(empty_model(preset("small", vocab_size=VOCABULARY))), "small")


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "2-rotation.svg": rotation,
    "4-stream.svg": residual_stream,
    "7-cache.svg": cache,
    "9-product.svg": lora,
    "../network.svg": network,
}


def main() -> None:
    """Writes all drawings."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, draw in DRAWINGS.items():
        draw().save(folder / name)
        print(folder / name)


if __name__ == "__main__":
    main()
