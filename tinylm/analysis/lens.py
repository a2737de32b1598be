"""The logit lens: the prediction after each block, read by the final norm and the head (nostalgebraist 2020).

The residual stream after a block is passed to the final norm and the head as if no block followed. For the last block
this is the model's output. Earlier blocks were not trained to be read in this way, so the lens only gives hints.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.analysis.activations import watching_activations
from tinylm.checks import require
from tinylm.evaluation.log_probs import evaluating, token_nats
from tinylm.model import TransformerLM
from tinylm.model.normalization import widened


@dataclass(frozen=True)
class LayerView:
    """The prediction of a text after one block."""

    layer: int  # the block, from 0; -1 for the embedding
    loss: float  # of the next token, in nats
    agreement: float  # share of the tokens after which the most probable next token is the model's
    divergence: float  # Kullback-Leibler divergence from the model's prediction, in nats


class Readings(NamedTuple):
    """The most probable next tokens after the embedding and each block."""

    best: Tensor  # token ids, (layers + 1, T)
    probability: Tensor  # their probabilities, (layers + 1, T)


def logit_lens(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Iterator[Tensor]:
    """The logits after the embedding and after each block, (B, T, V), one at a time, since they are large.

    The last are the model's own. A network that computes something else after its last block is refused.
    """
    streams: list[Tensor] = []  # (B, T, D) each
    places = ("embedding", "stream")
    with evaluating(model), watching_activations(model, lambda *seen: streams.append(seen[2]), places):
        own = model(ids, documents=documents)
    for number, stream in enumerate(streams, start=1):
        with evaluating(model):
            logits = widened(model.head(model.final_norm(stream)))
        same = number < len(streams) or torch.allclose(logits, own, rtol=1e-4, atol=1e-4)
        require(same, "this network does more after its last block than final_norm and head; no lens shows it")
        yield logits


def layer_views(model: TransformerLM, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> list[LayerView]:
    """The prediction after the embedding and after each block; targets are the tokens that follow, (B, T)."""
    with evaluating(model):
        final = model(ids, documents=documents).log_softmax(dim=-1)
    views = []
    for layer, logits in enumerate(logit_lens(model, ids, documents), start=-1):
        log_probs = logits.log_softmax(dim=-1)
        loss = token_nats(logits, targets).mean()
        agreement = (logits.argmax(dim=-1) == final.argmax(dim=-1)).float().mean()
        divergence = F.kl_div(log_probs, final, reduction="sum", log_target=True) / targets.numel()
        views.append(LayerView(layer, loss.item(), agreement.item(), divergence.item()))
    return views


def read_layers(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Readings:
    """The most probable next tokens of one text, (1, T)."""
    tops = [logits[0].softmax(dim=-1).max(dim=-1) for logits in logit_lens(model, ids, documents)]
    return Readings(torch.stack([top.indices for top in tops]), torch.stack([top.values for top in tops]))
