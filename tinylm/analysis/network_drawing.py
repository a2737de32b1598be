"""The drawing of a network: the residual stream from top to bottom, and beside it the layers that read and change it.

Equal blocks are drawn once. Each part has its parameters and operations; the axes of the shapes are named below.
"""

from collections.abc import Sequence
from dataclasses import replace

from tinylm.analysis.boxes import TIMES, Box
from tinylm.analysis.drawing import Drawing, Line, Rectangle, Words, wrapped
from tinylm.analysis.network import Layer, Network, Stage

WIDTH = 390  # of the canvas: a phone shows it whole
STREAM = 30  # the x of the residual stream
LEFT, RIGHT = 78, 376  # of the boxes beside it
INNER, OUTER = 62, 46  # x of the lines between stream and boxes: inputs that two layers share; their sum
ROW, SMALL, GAP, PAD = 15, 11, 20, 7
AXES = {
    "B": "batch", "T": "tokens (the context)", "D": "width of the residual stream", "H": "query heads",
    "K": "key and value heads", "E": "dimensions of a head", "F": "width of the feed-forward layer", "V": "vocabulary",
}  # fmt: skip


def draw_network(network: Network, title: str) -> Drawing:
    """Draws a network on a canvas as wide as a phone."""
    numbers = f"{network.parameters:,} parameters, {network.flops:,} FLOPs per token of training"
    painter = _Painter(Drawing(WIDTH, 0, f"The network {title}", f"The network from token ids to logits: {numbers}."))
    painter.heading(title, numbers)
    painter.stream_box(network.embedding, "token ids (B, T)")
    if network.positions is not None:
        painter.stream_box(network.positions, "(B, T, D)")
    for stage in network.stages:
        painter.stage(stage, len(network.stages) > 1)
    if network.final_norm is not None:
        painter.stream_box(network.final_norm, "(B, T, D)")
    painter.stream_box(network.head, "(B, T, D)")
    painter.stream_end("logits (B, T, V)")
    painter.legend(network)
    return painter.finish()


def _cost(parameters: int, flops: int) -> str:
    return f"{parameters:,} parameters · {flops:,} FLOPs" if flops else f"{parameters:,} parameters"


class _Painter:
    """Draws from top to bottom.

    Attributes:
        y: where the next part begins
        stream: where the line of the stream, which ends at the next part, begins; None before the first
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing, self.y, self.stream = drawing, 0.0, None
        self.frames: list[Rectangle] = []  # drawn first, below all else

    # --- words

    def heading(self, title: str, numbers: str) -> None:
        for size, bold, color, text in ((15, True, "ink", title), (SMALL, False, "faint", numbers)):
            for line in wrapped(text, WIDTH - 24, size, bold):
                self.y += size + 7
                self.drawing.add(Words(12, self.y, line, size, color=color, bold=bold))
        self.y += 12

    def legend(self, network: Network) -> None:
        shown = [f"{name}\u00a0=\u00a0{size:,} {AXES[name]}" for name, size in network.axes.items()]
        text = (
            f"B batch; {'; '.join(shown)}. A number alone in a box counts its parameters. FLOPs are those of training "
            "on one token at full context, forward and backward: six for each parameter that a product uses, and the "
            "attention scores."
        )
        if network.dropout:
            text += f" Dropout in training: {network.dropout:g}."
        self.y += 8
        for line in wrapped(text, WIDTH - 24, SMALL):
            self.y += 14
            self.drawing.add(Words(12, self.y, line, SMALL, color="faint"))

    def finish(self) -> Drawing:
        self.drawing.height = round(self.y + 12)
        self.drawing.shapes[:0] = self.frames
        return self.drawing

    # --- the stream

    def stream_to(self, y: float, label: str = "") -> None:
        """Continues the stream to `y`, with an arrow and a label beside it."""
        begin = self.y if self.stream is None else self.stream
        self.drawing.arrow((STREAM, begin), (STREAM, y), color="blue", width=3)
        if label:
            self.drawing.add(Words(STREAM + 10, (self.y + y) / 2 + 4, label, SMALL, color="faint"))
        self.stream = y

    def stream_box(self, box: Box, label: str) -> None:
        """A box that the stream passes through."""
        top = self.y + GAP + 4
        self.stream_to(top, label)
        height = self.height(box, costs=True)
        self.box(box, 12, top, RIGHT - 10, height, costs=True)
        self.y = self.stream = top + height

    def stream_end(self, label: str) -> None:
        top = self.y + GAP
        self.stream_to(top, label)
        self.y = top

    # --- blocks

    def stage(self, stage: Stage, several: bool) -> None:
        """The frame around a block, and what is in it."""
        parameters, flops = (sum(getattr(box, name) for box in stage.boxes) for name in ("parameters", "flops"))
        top = self.y + GAP
        self.stream_to(top, "(B, T, D)")
        layers = f", layers {', '.join(map(str, stage.layers))}" if several else ""
        title = f"Block {TIMES} {len(stage.layers)}{layers}"
        self.y = top + 2
        for bold, text in ((True, title), (False, f"each {_cost(parameters, flops)}")):
            for line in wrapped(text, RIGHT - STREAM - 12, 12 if bold else SMALL, bold):
                self.y += ROW
                self.drawing.add(Words(STREAM + 14, self.y, line, 12 if bold else SMALL, bold=bold,
                                       color="ink" if bold else "faint"))  # fmt: skip
        self.y += 4
        (self.parallel if stage.form.startswith("parallel") else self.sequential)(stage)
        self.y += 12
        self.drawing.add(Line(((STREAM, self.stream or top), (STREAM, self.y)), "blue", 3))
        self.stream = self.y
        self.frames.append(Rectangle(6, top, WIDTH - 12, self.y - top, "frame", "edge", 8))

    def sequential(self, stage: Stage) -> None:
        """Attention, then the feed-forward layer; each reads the stream and adds to it."""
        for norm, layer in ((stage.attention_norm, stage.attention), (stage.feedforward_norm, stage.feedforward)):
            before, after = (norm, None) if stage.form == "pre" else (None, norm if stage.form == "output" else None)
            self.y += 10
            reads, adds = self.column(before, layer, after)
            self.read(reads, before is None and len(layer.rows[0]) > 1)
            self.add_at(adds)
            self.y += 6
            if stage.form == "post" and norm is not None:
                self.y += 4
                self.stream_box(norm, "")

    def parallel(self, stage: Stage) -> None:
        """Both layers read the same stream, or one norm of it, and are added together."""
        self.y += 10
        one = stage.form == "parallel_one_norm"
        reads, ends = self.column(stage.attention_norm, stage.attention, None)
        self.read(reads, False)
        self.y += 10
        second, adds = self.column(None if one else stage.feedforward_norm, stage.feedforward, None)
        self.drawing.add(Line(((LEFT, ends), (OUTER, ends), (OUTER, adds)), "faint"))
        if one:
            path = ((LEFT, reads + 8), (INNER, reads + 8), (INNER, second), (LEFT, second))
            self.drawing.add(Line(path, arrow=len(stage.feedforward.rows[0]) == 1))
        else:
            self.drawing.add(Line(((OUTER, second - 5), (OUTER, second + 5)), "frame", 4))  # the lines do not meet
            self.read(second, False)
        self.add_at(adds)
        self.y += 6

    def read(self, y: float, divided: bool) -> None:
        """A line from the stream to a box, or to the line that divides it among several."""
        self.drawing.add(Line(((STREAM, y), (LEFT, y)), arrow=not divided))

    def add_at(self, y: float) -> None:
        """The sum of the stream and of what arrives at `y`."""
        self.drawing.arrow((LEFT, y), (STREAM + 8, y))
        self.drawing.add(Line(((STREAM, self.stream or y), (STREAM, y)), "blue", 3))
        self.drawing.plus(STREAM, y)
        self.stream = y + 8

    # --- layers

    def column(self, before: Box | None, layer: Layer, after: Box | None) -> tuple[float, float]:
        """A layer with its norm; returns the y at which it reads and the y of its result."""
        parameters, flops = (sum(getattr(box, name) for box in layer.boxes) for name in ("parameters", "flops"))
        cost = Words(RIGHT, self.y + 10, _cost(parameters, flops), SMALL, "end", "faint")
        title = Words(LEFT, self.y + 10, layer.title, 12, bold=True)
        if title.box[2] + 10 > cost.box[0]:
            cost = replace(cost, y=cost.y + ROW)
        self.drawing.add(title, cost)
        self.y = cost.y + 6
        stream = "(B, T, D)"
        rows = [*([((before,), stream)] if before else []), *zip(layer.rows, layer.shapes, strict=True)]
        rows += [((after,), stream)] if after else []
        places: list[tuple[float, float]] = []  # top and height of each row
        entry = self.entry(rows[0][0])
        for number, (row, shape) in enumerate(rows):
            places.append((self.y, self.row(row, costs=row in ((before,), (after,)))))
            self.y += places[-1][1]
            if number + 1 < len(rows):
                self.joints(row, rows[number + 1][0], shape)
        (top, first), (bottom, last) = places[0], places[-1]
        alone = len(rows) == 1  # a box whose input and output are both at its left
        reads = top + (first / 3 if alone else first / 2) if entry is None else entry
        return reads, bottom + (2 * last / 3 if alone else last / 2)

    def entry(self, row: Sequence[Box | None]) -> float | None:
        """Divides what several boxes read among them; returns the y at which it enters. None for a single box."""
        middles = [x + width / 2 for x, width in self.columns(len(row))]
        if len(row) == 1:
            return None
        y = self.y + 4
        self.drawing.add(Line(((LEFT, y), (middles[-1], y))))
        self.y = y + 14
        for x in middles:
            self.drawing.arrow((x, y), (x, self.y))
        return y

    def columns(self, count: int) -> list[tuple[float, float]]:
        """Left edge and width of boxes side by side."""
        width = (RIGHT - LEFT - 6 * (count - 1)) / count
        return [(LEFT + i * (width + 6), width) for i in range(count)]

    def row(self, boxes: Sequence[Box | None], costs: bool = False) -> float:
        """Boxes side by side, of equal height, which is returned."""
        height = max(self.height(box, costs) for box in boxes if box is not None)
        for box, (x, width) in zip(boxes, self.columns(len(boxes)), strict=True):
            if box is None:
                self.drawing.add(Line(((x + width / 2, self.y), (x + width / 2, self.y + height))))
            else:
                self.box(box, x, self.y, width, height, costs)
        return height

    def joints(self, row: Sequence[Box | None], following: Sequence[Box | None], shape: str) -> None:
        """The arrows from one row to the next."""
        count = max(len(row), len(following))
        below = self.y + (GAP if shape else 12)
        middles = [x + width / 2 for x, width in self.columns(count)]
        for place, x in enumerate(middles):
            passes = len(following) == count and following[place] is None
            self.drawing.add(Line(((x, self.y), (x, below)), arrow=not passes))
        if shape and count <= 2:
            self.drawing.add(Words(middles[-1] + 8, self.y + GAP / 2 + 4, shape, SMALL, color="faint"))
        self.y = below

    # --- boxes

    def lines(self, box: Box, costs: bool) -> list[str | tuple[str, str]]:
        shown = [*box.lines]
        if costs:
            shown.append(_cost(box.parameters, box.flops))
        elif box.parameters and not any(isinstance(line, tuple) for line in shown):
            shown.append(f"{box.parameters:,}")
        return shown

    def height(self, box: Box, costs: bool) -> float:
        return 2 * PAD + ROW + 14 * len(self.lines(box, costs)) - 2

    def box(self, box: Box, x: float, y: float, width: float, height: float, costs: bool) -> None:
        self.drawing.add(Rectangle(x, y, width, height))
        self.drawing.add(Words(x + width / 2, y + PAD + 10, box.title, 12, "middle", bold=True))
        for number, line in enumerate(self.lines(box, costs)):
            base = y + PAD + ROW + 9 + 14 * number
            if isinstance(line, tuple):
                self.drawing.add(Words(x + 8, base, line[0], SMALL), Words(x + width - 8, base, line[1], SMALL, "end"))
            else:
                self.drawing.add(Words(x + width / 2, base, line, SMALL, "middle", "faint"))
