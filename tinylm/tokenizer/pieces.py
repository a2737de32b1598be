"""What a tokenizer makes of a text, to be looked at: the pieces, their ids, and how much shorter the text becomes."""

from itertools import cycle

from tinylm.console import shaded
from tinylm.tokenizer.base import Tokenizer

COLORS = (194, 225, 230, 223, 189)  # light backgrounds of the 256 colours of terminals; the letters on them are black


def show_pieces(tokenizer: Tokenizer, text: str, color: bool) -> str:
    """The text with its tokens told apart, by colour or by bars, their ids below, and a line of figures.

    Args:
        tokenizer: cuts the text
        text: not empty
        color: whether a terminal shows it

    Raises:
        DataError: for text that the tokenizer has no ids for.
    """
    ids = tokenizer.encode(text)
    pieces = [visible(tokenizer.token_bytes[token]) for token in ids]
    if color:
        shades = cycle(COLORS)
        shown = "".join(shaded(piece, next(shades)) for piece in pieces)
    else:
        shown = "|".join(pieces)
    return f"{shown}\n{' '.join(map(str, ids))}\n{figures(tokenizer, text, len(ids))}"


def figures(tokenizer: Tokenizer, text: str, count: int) -> str:
    """Tokens, bytes per token, and the size of the stored ids beside that of the text."""
    num_bytes, stored = len(text.encode()), count * tokenizer.dtype.itemsize
    return (
        f"{count:,} tokens, {num_bytes:,} bytes, {len(text):,} characters: {num_bytes / max(count, 1):.2f} bytes per "
        f"token; the ids take {stored:,} bytes, {stored / max(num_bytes, 1):.0%} of the text"
    )


def visible(piece: bytes) -> str:
    """The text of a token on one line: line ends and other controls as escapes, and bytes that are no character.

    >>> visible(b" caf\\xc3\\n")
    ' caf\\\\xc3\\\\n'
    """
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
