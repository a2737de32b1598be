"""The inside of a model for the page of `tinylm play`: tokens, the loss of a text, attention weights.

All results are plain values for JSON, in which a number that is not finite is null.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.analysis.attention import entropy, watching_attention
from tinylm.checks import require
from tinylm.data.grammar.stories import story_grammar
from tinylm.evaluation.log_probs import document_ids, evaluating
from tinylm.evaluation.score import Score
from tinylm.evaluation.tokens import token_losses
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

MOST_READ = 10_000  # tokens of a text whose losses are shown
MOST_SEEN = 512  # tokens of an attention map


def number(value: float, digits: int = 4) -> float | None:
    """A number for JSON, rounded; null if it is not finite."""
    return round(value, digits) if math.isfinite(value) else None


def speller(tokenizer: Tokenizer) -> Callable[[int], dict[str, Any]]:
    """A function that describes the tokens of a text in turn.

    `text` has the characters that a token completes: none for the first part of a character. `label` names the token
    on one line, independently of its neighbours.
    """
    decode = tokenizer.piece_decoder()
    special = {*tokenizer.special_tokens.values()}
    return lambda token: named(tokenizer, token) | {"text": decode(token), "special": token in special}


def named(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    """Id and label of a token; a model can have more rows than its tokenizer has tokens."""
    known = token < tokenizer.vocab_size
    return {"id": token, "label": visible(tokenizer.token_bytes[token]) if known else f"row {token}"}


def spell(tokenizer: Tokenizer, ids: Iterable[int]) -> list[dict[str, Any]]:
    """The tokens of a whole text."""
    return list(map(speller(tokenizer), ids))


def _shortened(tokenizer: Tokenizer, text: str, most: int) -> tuple[str, int, np.ndarray, np.ndarray]:
    """The beginning of a text, of `most` tokens; the tokens of all; ids and character offsets of the beginning."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    total = len(ids)
    if total > most:
        text = text[: offsets[most - 1, 1]]
        ids, offsets = tokenizer.encode_with_offsets(text)
    return text, total, ids, offsets


def read_text(model: TransformerLM, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """The loss of a text, token by token, and the figures of `tinylm score`.

    `floor` is the least possible expected loss: -log of the probability with which a built-in story that begins like
    the text continues in the same way. It is null if no built-in story begins with the text.
    """
    text, total, ids, offsets = _shortened(tokenizer, text, MOST_READ)
    losses = token_losses(model, tokenizer, text)
    nats = [each.nats for each in losses if each.nats is not None]
    first = len(losses) - len(nats)  # the first token, if nothing precedes it
    score = Score(math.fsum(nats), len(nats), tokenizer.bytes_from(text, ids, first))
    begins = story_grammar().prefix_log_probs(text)
    known = math.isfinite(begins[-1])
    floors = -np.diff(begins[offsets[:, 1]], prepend=0.0) if known else [math.nan] * len(losses)
    return {
        "tokens": [
            spelled
            | {
                "nats": None if each.nats is None else number(each.nats),
                "guess": None if each.guess is None else named(tokenizer, each.guess),
                "floor": number(abs(floor)),  # 0, not -0
            }
            for each, spelled, floor in zip(losses, spell(tokenizer, ids.tolist()), floors, strict=True)
        ],
        "total": total,
        "loss": number(score.loss),
        "perplexity": number(score.perplexity),
        "bits_per_byte": number(score.bits_per_byte) if score.bytes else None,
        "floor": number(float(np.mean(floors[first:]))) if known else None,
    }


def look(model: TransformerLM, tokenizer: Tokenizer, text: str, layer: int, head: int) -> dict[str, Any]:
    """The attention weights of a head over a text: row t has the weights of token t on tokens 0 to t."""
    config = model.config
    require(0 <= layer < config.num_layers, f"layer must be from 0 to {config.num_layers - 1}, got {layer}")
    require(0 <= head < config.num_heads, f"head must be from 0 to {config.num_heads - 1}, got {head}")
    before = len(tokenizer.opening)
    text, total, _, _ = _shortened(tokenizer, text, min(config.max_seq_len, MOST_SEEN) - before)
    ids = torch.from_numpy(document_ids(tokenizer, text))[None].to(model.embedding.weight.device)  # (1, T)
    require(ids.numel() > 0, "the text is empty; give one")
    found: list[Tensor] = []

    def see(number: int, weights: Tensor) -> None:
        if number == layer:
            found.append(weights[0, head].cpu())

    with evaluating(model), watching_attention(model, see):
        model(ids, documents=documents_apart(config, ids, tokenizer.end_of_text))
    weights = found[0]  # (T, T)
    return {
        "tokens": spell(tokenizer, ids[0].tolist()),
        "total": total + before,
        "weights": [[number(weight) for weight in row[: t + 1]] for t, row in enumerate(weights.tolist())],
        "entropy": number(entropy(weights).mean().item()),
        "previous": number(weights.diagonal(-1).mean().item()),
    }
