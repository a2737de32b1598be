"""The logit lens: what a network would say if it ended after each block (nostalgebraist 2020).

The stream after a block goes through the final norm and the head, as if no block followed. Of the last block that is
what the network says. Early blocks are not made to be read so: what the lens shows of them is a hint, no more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.analysis.activations import watching_activations
from tinylm.errors import ConfigError
from tinylm.evaluation.log_probs import evaluating
from tinylm.model import TransformerLM
from tinylm.model.normalization import widened


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """How well a text is predicted after a block."""

    layer: int
    """The block, from 0; -1: straight from the embedding."""
    loss: float
    """Of the next token, in nats."""
    agreement: float
    """Share of the tokens after which the likeliest next one is the network's."""
    divergence: float
    """From the network's probabilities to these, in nats (Kullback and Leibler's)."""


@dataclass(frozen=True)
class Readings:
    """What each layer would say after each token, straight from the embedding first.

    Attributes:
        best: the likeliest next token, (layers + 1, T)
        probability: its probability, (layers + 1, T)
    """

    best: Tensor
    probability: Tensor


def layer_streams(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> list[Tensor]:
    """The stream after the embedding and after each block: layers + 1 of (B, T, D)."""
    return _read(model, ids, documents)[0]


def _read(model: TransformerLM, ids: Tensor, documents: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The streams, and the network's own logits, (B, T, V)."""
    streams: list[Tensor] = []

    def see(place: str, layer: int, values: Tensor) -> None:
        streams.append(values)

    with evaluating(model), watching_activations(model, see, ("embedding", "stream")):
        logits = model(ids, documents=documents)
    return streams, logits


def logit_lens(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Iterator[Tensor]:
    """What would follow each token by each layer, straight from the embedding first; one at a time, for they are large.

    Args:
        model: the network
        ids: token ids, (B, T)
        documents: as `TransformerLM.forward` takes them

    Yields:
        logits, (B, T, V); the last are the network's own

    Raises:
        ConfigError: if they are not: then the network computes something else behind its last block.
    """
    streams, own = _read(model, ids, documents)
    for number, stream in enumerate(streams, start=1):
        with evaluating(model):
            logits = widened(model.head(model.final_norm(stream)))
        if number == len(streams) and not torch.allclose(logits, own, rtol=1e-4, atol=1e-4):
            raise ConfigError("this network does more behind its last block than final_norm and head; no lens shows it")
        yield logits


def layer_views(model: TransformerLM, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> list[LayerView]:
    """How the prediction comes about, layer by layer.

    Args:
        model: the network
        ids: token ids, (B, T)
        targets: what follows each, (B, T)
        documents: as `TransformerLM.forward` takes them
    """
    with evaluating(model):
        final = model(ids, documents=documents).log_softmax(dim=-1).flatten(0, 1)  # (B T, V)
    found = []
    for layer, logits in enumerate(logit_lens(model, ids, documents), start=-1):
        log_probs = logits.log_softmax(dim=-1).flatten(0, 1)
        found.append(
            LayerView(
                layer=layer,
                loss=F.nll_loss(log_probs, targets.flatten()).item(),
                agreement=(log_probs.argmax(dim=-1) == final.argmax(dim=-1)).float().mean().item(),
                divergence=F.kl_div(log_probs, final, reduction="batchmean", log_target=True).item(),
            )
        )
    return found


def read_layers(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Readings:
    """What each layer would say of one text, (1, T)."""
    tops = [logits[0].softmax(dim=-1).max(dim=-1) for logits in logit_lens(model, ids, documents)]
    return Readings(torch.stack([top.indices for top in tops]), torch.stack([top.values for top in tops]))
