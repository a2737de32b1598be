"""The loss of each token of a text, shown in colour on a terminal.

The text is read as `tinylm score` reads it: as one document, in windows that overlap by half the context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinylm.console import Scale
from tinylm.errors import notice
from tinylm.evaluation.log_probs import document_ids, token_log_probs
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

# The least loss of each shade in nats, and its number among the 256 terminal colours: white, yellow, orange, violet.
# Luminance falls from shade to shade, and neighbours differ in hue, so that the scale works without colour vision.
SHADES = ((0.0, 231), (0.1, 230), (0.5, 222), (1.0, 215), (2.0, 208), (4.0, 170), (8.0, 99))
LOSS = Scale("loss in nats", ".1f", "g", SHADES)


@dataclass(frozen=True)
class TokenLoss:
    """A token of a text and the model's prediction in its place."""

    id: int
    nats: float | None  # its loss, -log p; None for the first token of a text that has no separator before it
    guess: int | None  # the most probable token; None there too


def token_losses(model: TransformerLM, tokenizer: Tokenizer, text: str, most: int | None = None) -> list[TokenLoss]:
    """The loss of every token of a text, or of its first `most` tokens, with a notice that the others are left out."""
    ids = document_ids(tokenizer, text)
    separators = len(tokenizer.opening)
    if most is not None and most < len(ids) - separators:
        notice(f"reading the first {most:,} of the text's {len(ids) - separators:,} tokens")
        ids = ids[: most + separators]
    (found,) = token_log_probs(model, [ids], separator=tokenizer.end_of_text)
    first = [] if separators else [TokenLoss(int(ids[0]), None, None)]
    return [*first, *map(TokenLoss, ids[1:].tolist(), (-found.log_probs).tolist(), found.likeliest.tolist())]


def mean_loss(losses: Sequence[TokenLoss]) -> float:
    """Nats per predicted token."""
    nats = [each.nats for each in losses if each.nats is not None]
    return math.fsum(nats) / len(nats)


def show_losses(losses: Sequence[TokenLoss], tokenizer: Tokenizer, color: bool) -> str:
    """The text for a terminal: the darker a token, the greater its loss; without colour the loss in brackets."""
    shown = []
    for each in losses:
        piece = visible(tokenizer.token_bytes[each.id])
        shown.append(piece if each.nats is None else LOSS.show(piece, each.nats, color))
        shown.append("\n" * tokenizer.token_bytes[each.id].endswith(b"\n"))
    return "".join(shown).removesuffix("\n")
