"""The loss of each token of a text, shown in colour on a terminal or as an HTML page.

The text is read as `tinylm score` reads it: as one document, in windows that overlap by half the context.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinylm.console import Scale
from tinylm.errors import notice
from tinylm.evaluation.log_probs import document_ids, token_log_probs
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

# The least loss of each shade in nats, its number among the 256 terminal colours, and its colour in HTML. Luminance
# falls from shade to shade, so that the scale works without colour vision.
SHADES = (
    (0.0, 231, "#ffffff"),
    (0.1, 230, "#ffffd7"),
    (0.5, 223, "#ffd7af"),
    (1.0, 216, "#ffaf87"),
    (2.0, 209, "#ff875f"),
    (4.0, 203, "#ff5f5f"),
    (8.0, 196, "#ff0000"),
)
LOSS = Scale("loss in nats", ".1f", "g", tuple((least, number) for least, number, _ in SHADES))
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 50em; margin: 2em auto; color: black; background: white }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
span {{ padding: 0.15em 0; border-radius: 2px }}
</style>
<h1>{title}</h1>
<p>{figures}</p>
<p>{legend}</p>
<p>{text}</p>
</html>
"""


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


def html_page(losses: Sequence[TokenLoss], tokenizer: Tokenizer, title: str) -> str:
    """A web page of the text in colour; hovering over a token shows its loss and the model's guess."""
    steps = "".join(f'<span style="background:{name}"> {least:g} </span>' for least, _, name in SHADES)
    return PAGE.format(
        title=html.escape(title),
        figures=f"{len(losses):,} tokens, loss {mean_loss(losses):.4f} nats per token",
        legend=f"{LOSS.quantity} from {steps}",
        text="".join(_html_token(each, tokenizer) for each in losses),
    )


def _html_token(each: TokenLoss, tokenizer: Tokenizer) -> str:
    piece = tokenizer.token_bytes[each.id]
    shown = html.escape(visible(piece)) + "\n" * piece.endswith(b"\n")
    if each.nats is None or each.guess is None:
        return f"<span>{shown}</span>"
    guess = visible(tokenizer.token_bytes[each.guess]) if each.guess < tokenizer.vocab_size else f"row {each.guess}"
    note = html.escape(f"{each.nats:.2f} nats, probability {math.exp(-each.nats):.1%}; likeliest: '{guess}'")
    color = [name for least, _, name in SHADES if least <= max(each.nats, 0.0)][-1]
    return f'<span style="background:{color}" title="{note}">{shown}</span>'
