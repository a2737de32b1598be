"""Displays a tokenized text: its tokens, their ids and the compression."""

from itertools import cycle

from tinylm.console import shaded
from tinylm.tokenizer.base import Tokenizer

COLORS = (194, 225, 230, 223, 189)  # light backgrounds of the 256-colour palette, for black text


def show_pieces(tokenizer: Tokenizer, text: str, color: bool) -> str:
    """The tokens of a text, separated by colours or bars, then a line of ids and a line of statistics.

    Args:
        tokenizer: encodes the text
        text: must not be empty
        color: whether to use terminal colours

    Raises:
        DataError: if the text cannot be encoded.
    """
    ids = tokenizer.encode(text)
    pieces = [visible(tokenizer.token_bytes[token]) for token in ids]
    if color:
        shades = cycle(COLORS)
        shown = "".join(shaded(piece, next(shades)) for piece in pieces)
    else:
        shown = "|".join(pieces)
    return f"{shown}\n{' '.join(map(str, ids))}\n{statistics(tokenizer, text, len(ids))}"


def statistics(tokenizer: Tokenizer, text: str, count: int) -> str:
    """Token counts, bytes per token, and the size of the stored ids relative to the text."""
    num_bytes, stored = len(text.encode()), count * tokenizer.dtype.itemsize
    return (
        f"{count:,} tokens, {num_bytes:,} bytes, {len(text):,} characters: {num_bytes / max(count, 1):.2f} bytes per "
        f"token; the ids take {stored:,} bytes, {stored / max(num_bytes, 1):.0%} of the text"
    )


def visible(piece: bytes) -> str:
    """The text of a token on one line; control characters and invalid UTF-8 are escaped.

    >>> visible(b" caf\\xc3\\n")
    ' caf\\\\xc3\\\\n'
    """
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
