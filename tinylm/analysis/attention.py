"""Attention maps: where each head attends, how spread out its weights are, and two well-known kinds of heads.

A previous-token head attends to the token before. An induction head attends to the token that followed an earlier
occurrence of the current one; together the two copy repeated text (Elhage et al. 2021, Olsson et al. 2022). The
weights are recomputed from the queries and keys of each layer, since the fused kernel never stores them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.analysis.watch import blocks_of, check_seen
from tinylm.checks import require
from tinylm.evaluation.log_probs import evaluating
from tinylm.kernels.block_masks import attend_blocks
from tinylm.model import TransformerLM
from tinylm.model.attention import Attention, attend_fused, attend_plain, visible_keys
from tinylm.model.normalization import widened


@dataclass(frozen=True)
class HeadScores:
    """Averages over the queries of a text, for every head."""

    entropy: Tensor  # of a query's weights in nats, (layers, H)
    uniform: Tensor  # the entropy of uniform attention to all keys visible in a layer, which is the maximum, (layers,)
    previous: Tensor  # weight on the token before, over the queries that have one, (layers, H); NaN if none has


def attention_weights(query: Tensor, key: Tensor, visible: Tensor | None, scale: float | None = None) -> Tensor:
    """softmax(scale q kᵀ) over the visible keys, in float32 or wider: (B, H, T, E), (B, K, S, E) -> (B, H, T, S)

    The default of `scale` is 1/√E.
    """
    query, key = widened(query), widened(key)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, H, S, E)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    visible = causal(*scores.shape[-2:], device=scores.device) if visible is None else visible
    return scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)


def causal(queries: int, keys: int, device: torch.device | str | None = None) -> Tensor:
    """The causal mask, (T, S), of queries at the last positions of the keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@contextmanager
def watching_attention(model: TransformerLM, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Passes attention weights to `see(layer, weights)`, weights (B, H, T, S), while the network computes.

    It is used in a `with` block. A layer whose attention kernel is not one of tinylm's is refused.
    """
    seen: list[str] = []
    layers = [block.attention for block in blocks_of(model)]
    for number, attention in enumerate(layers):
        known = isinstance(attention, Attention) and attention.attend in (attend_plain, attend_fused, attend_blocks)
        name = f"blocks.{number}.attention ({type(attention).__name__})"
        require(known, f"{name} does not use an attention kernel of tinylm, so its weights are unknown")
    kernels = [attention.attend for attention in layers]

    def observed(layer: int, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(
            query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float, scale: float | None
        ) -> Tensor:
            seen.append(f"blocks.{layer}.attention")
            see(layer, attention_weights(query, key, visible, scale))
            return kernel(query, key, value, visible, dropout, scale)

        return attend

    for attention, kernel in zip(layers, kernels, strict=True):
        attention.attend = observed(attention.layer, kernel)
    try:
        yield
        check_seen(seen, [f"blocks.{attention.layer}.attention" for attention in layers])
    finally:
        for attention, kernel in zip(layers, kernels, strict=True):
            attention.attend = kernel


def attention_maps(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """The attention weights of all heads, (layers, B, H, T, T)."""
    maps: list[Tensor] = []
    with evaluating(model), watching_attention(model, lambda layer, weights: maps.append(weights)):
        model(ids, documents=documents)
    return torch.stack(maps)


def entropy(weights: Tensor) -> Tensor:
    """-Σ w log w over the keys, in nats: (..., S) -> (...)"""
    return -torch.special.xlogy(weights, weights).sum(dim=-1)


def head_scores(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> HeadScores:
    """The scores of every head, computed without keeping attention maps."""
    entropies: list[Tensor] = []
    previous: list[Tensor] = []

    def see(layer: int, weights: Tensor) -> None:
        entropies.append(entropy(weights).mean(dim=(0, 2)))
        previous.append(weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(0, 2)))

    with evaluating(model), watching_attention(model, see):
        model(ids, documents=documents)
    most = {window: _uniform_entropy(ids, window, documents) for window in dict.fromkeys(model.windows)}
    uniform = torch.tensor([most[window] for window in model.windows], dtype=torch.float64)
    return HeadScores(torch.stack(entropies), uniform, torch.stack(previous))


def _uniform_entropy(ids: Tensor, window: int | None, documents: Tensor | None) -> float:
    T = ids.shape[1]
    visible = visible_keys(T, T, window, documents, ids.device)
    keys = (causal(T, T) if visible is None else visible).sum(dim=-1)  # visible keys of each query
    return keys.cpu().double().log().mean().item()


def induction_scores(model: TransformerLM, *, rows: int = 8, seed: int = 0) -> Tensor:
    """The induction score of each head: its weight on the token that followed the first occurrence of the current one.

    It is averaged over the repetition of random sequences, each half a context long (or a sliding window, if that is
    shorter). The result is (layers, H); NaN where context or window are too short for a repetition.
    """
    config = model.config
    half = min(config.max_seq_len // 2, config.sliding_window or config.max_seq_len)
    if half < 2:
        return torch.full((config.num_layers, config.num_heads), torch.nan)
    once = torch.randint(config.vocab_size, (rows, half), generator=torch.Generator().manual_seed(seed))
    found: list[Tensor] = []

    def see(layer: int, weights: Tensor) -> None:
        followers = weights.diagonal(1 - half, dim1=-2, dim2=-1)[..., 1:]  # key t - half + 1 of query t, t >= half
        found.append(followers.mean(dim=(0, 2)))

    with evaluating(model), watching_attention(model, see):
        model(once.repeat(1, 2).to(model.embedding.weight.device))
    return torch.stack(found)
