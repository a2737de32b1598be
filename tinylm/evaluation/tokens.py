"""A text token by token: which ones a model expected and which surprised it, in colour.

The text is read as `tinylm score` reads it: one document with the end-of-text token before it, in windows that
overlap by half a context.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.errors import DataError, notice
from tinylm.evaluation.log_probs import evaluating
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

# From expected to surprising, ever darker, so that it needs no eye for colours: the loss in nats from which on a shade
# counts, its number among the 256 colours of terminals, and its name in HTML.
SHADES = (
    (0.0, 231, "#ffffff"),
    (0.1, 230, "#ffffd7"),
    (0.5, 223, "#ffd7af"),
    (1.0, 216, "#ffaf87"),
    (2.0, 209, "#ff875f"),
    (4.0, 203, "#ff5f5f"),
    (8.0, 196, "#ff0000"),
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 50em; margin: 2em auto; color: black; background: white }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
span {{ padding: 0.15em 0; border-radius: 2px }}
small {{ color: #767676 }}
</style>
<h1>{title}</h1>
<p>{figures}</p>
<p>{legend}</p>
<p>{text}</p>
</html>
"""


@dataclass(frozen=True)
class TokenLoss:
    """A token of a text, and what the model made of it.

    Attributes:
        id: the token
        nats: -log p of it; None for the first of a text, where nothing comes before it
        guess: the token that was likeliest; None there too
    """

    id: int
    nats: float | None
    guess: int | None


def token_losses(model: TransformerLM, tokenizer: Tokenizer, text: str, most: int | None = None) -> list[TokenLoss]:
    """What a model makes of every token of a text.

    Args:
        model: the network
        tokenizer: of the model
        text: any
        most: tokens to begin with; the rest is left out with a notice. None: all

    Raises:
        DataError: for a text without a token to predict, or that the tokenizer has no ids for.
    """
    found = tokenizer.encode_array(text)
    ids = found[:most].tolist()
    if len(ids) < len(found):
        notice(f"of the text's {len(found):,} tokens the first {most:,} are read")
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    known = [] if before else [TokenLoss(token, None, None) for token in ids[:1]]
    if len(before + ids) < 2:
        raise DataError("the text has no token to predict; give a longer one")
    device = model.embedding.weight.device
    return [*known, *_losses(model, torch.tensor(before + ids, device=device), tokenizer.end_of_text)]


def _losses(model: TransformerLM, ids: Tensor, separator: int | None) -> Iterable[TokenLoss]:
    """Of all tokens but the first, each from the first window that holds it and what it is predicted from."""
    context = model.config.max_seq_len
    begin, done = 0, 1  # `done` tokens are predicted, or need not be
    while done < len(ids):
        end = min(begin + context + 1, len(ids))
        with evaluating(model):
            window = ids[None, begin : end - 1]
            documents = documents_apart(model.config, window, separator)
            log_probs = model(window, documents=documents)[0].cpu().double().log_softmax(dim=-1)  # (T, V)
        fresh = log_probs[done - begin - 1 :]  # what follows token done - 1, and on
        nats = -fresh.gather(1, ids[done:end, None].cpu())[:, 0]
        yield from map(TokenLoss, ids[done:end].tolist(), nats.tolist(), fresh.argmax(dim=-1).tolist())
        begin, done = min(begin + max(context // 2, 1), max(len(ids) - 1 - context, 0)), end


def mean_loss(losses: Sequence[TokenLoss]) -> float:
    """Nats per token, over those that were predicted."""
    counted = [each.nats for each in losses if each.nats is not None]
    return math.fsum(counted) / len(counted)


def text_rows(tokenizer: Tokenizer, texts: Iterable[str], length: int, most: int) -> Tensor:
    """Sequences of equal length from some texts, the end-of-text token before each text.

    Every text begins a sequence, a longer one several; where a text ends in one, the next text goes on in it.

    Args:
        tokenizer: cuts the texts
        texts: documents
        length: of a sequence, without the token that follows the last
        most: sequences

    Returns:
        token ids, (N, length + 1): what is read and, shifted by one, what follows. One shorter row if there is no more.

    Raises:
        DataError: for texts of fewer than two tokens.
    """
    separator = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids: list[int] = []
    begins: list[int] = []
    for text in texts:
        document = [*separator, *tokenizer.encode_array(text).tolist()]
        begins += range(len(ids), len(ids) + len(document), length)
        ids += document
        if len(begins) >= most and len(ids) > begins[most - 1] + length:
            break
    if len(ids) < 2:
        raise DataError("the text has no token to predict; give a longer one")
    whole = [ids[begin : begin + length + 1] for begin in begins[:most] if begin + length < len(ids)]
    return torch.tensor(whole or [ids])


# --- to be looked at


def shade(nats: float) -> tuple[int, str]:
    """The colour of a loss: in terminals, and in HTML."""
    _, number, name = [each for each in SHADES if each[0] <= max(nats, 0.0)][-1]
    return number, name


def show_losses(losses: Sequence[TokenLoss], tokenizer: Tokenizer, color: bool) -> str:
    """A text for terminals: the darker a token, the greater its loss; without colours its loss stands behind it."""
    shown = []
    for each in losses:
        piece = visible(tokenizer.token_bytes[each.id])
        if each.nats is not None and color:
            piece = f"\x1b[30;48;5;{shade(each.nats)[0]}m{piece}\x1b[0m"
        elif each.nats is not None:
            piece = f"{piece}[{each.nats:.1f}]"
        shown.append(piece + "\n" * tokenizer.token_bytes[each.id].endswith(b"\n"))
    return "".join(shown).removesuffix("\n")


def legend(color: bool) -> str:
    """What the colours of `show_losses` mean."""
    if not color:
        return "behind each token: its loss in nats"
    return "loss in nats from " + "".join(f"\x1b[30;48;5;{number}m {least:g} \x1b[0m" for least, number, _ in SHADES)


def html_page(losses: Sequence[TokenLoss], tokenizer: Tokenizer, title: str) -> str:
    """The same as a page of its own; a pointer over a token shows its figures and what was expected."""
    steps = "".join(f'<span style="background:{name}"> {least:g} </span>' for least, _, name in SHADES)
    return PAGE.format(
        title=html.escape(title),
        figures=f"{len(losses):,} tokens, loss {mean_loss(losses):.4f} nats per token",
        legend=f"loss in nats from {steps}",
        text="".join(_html_token(each, tokenizer) for each in losses),
    )


def _html_token(each: TokenLoss, tokenizer: Tokenizer) -> str:
    piece = visible(tokenizer.token_bytes[each.id])
    shown = html.escape(piece) + ("\n" if tokenizer.token_bytes[each.id].endswith(b"\n") else "")
    if each.nats is None or each.guess is None:
        return f"<span>{shown}</span>"
    guess = visible(tokenizer.token_bytes[each.guess])
    note = html.escape(f"{each.nats:.2f} nats, probability {math.exp(-each.nats):.1%}; likeliest: '{guess}'")
    return f'<span style="background:{shade(each.nats)[1]}" title="{note}">{shown}</span>'
