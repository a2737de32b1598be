"""Numbers, tables and colours on a terminal."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def plural(count: int, thing: str) -> str:
    """A number of things: `1 token`, `2,048 tokens`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def scaled(number: float) -> str:
    """A number with three digits and the prefix of a unit: `1.23 M`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


def duration(seconds: float) -> str:
    """A time in hours and minutes, minutes and seconds, or seconds.

    >>> duration(48), duration(239.7), duration(7500)
    ('48 s', '4 min 00 s', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def table(rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Aligned columns: the first `left` flush left, the others flush right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    cells = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def use_color(choice: str = "auto") -> bool:
    """Whether to colour stdout: `always`, `never`, or `auto` for a terminal whose user has not set NO_COLOR."""
    return choice == "always" or (choice == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def shaded(text: str, color: int) -> str:
    """Black text on one of the 256 terminal colours."""
    return f"\x1b[30;48;5;{color}m{text}\x1b[0m"


@dataclass(frozen=True)
class Scale:
    """Shows the value of a text as a background colour, or as a number in brackets where there is no colour."""

    quantity: str  # name and unit of the value
    form: str  # format of the value in brackets
    label: str  # format of the value in the legend
    steps: tuple[tuple[float, int], ...]  # for each colour, ascending: the least value, and its terminal number

    def show(self, text: str, value: float, color: bool) -> str:
        """The text with its value."""
        if not color:
            return f"{text}[{value:{self.form}}]"
        return shaded(text, [shade for least, shade in self.steps if least <= max(value, self.steps[0][0])][-1])

    def legend(self, color: bool) -> str:
        """One line that explains `show`."""
        if not color:
            return f"in brackets: the {self.quantity} of each token"
        return f"{self.quantity} from " + "".join(
            shaded(f" {least:{self.label}} ", shade) for least, shade in self.steps
        )
