"""Where the heads of a network look: their weights, how spread out they are, and two things that heads are known to do.

A previous-token head looks at the token before. An induction head looks for an earlier occurrence of the present token
and there at the one that followed; together the two copy what was said once (Elhage et al. 2021, Olsson et al. 2022).
The weights are computed anew from the queries and keys that reach each layer's kernel: the fused one never has them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinylm.analysis.watch import blocks_of, check_seen
from tinylm.errors import ConfigError
from tinylm.evaluation.log_probs import evaluating
from tinylm.model import TransformerLM
from tinylm.model.attention import Attention, attend_fused, attend_plain, visible_keys
from tinylm.model.normalization import widened


@dataclass(frozen=True)
class HeadScores:
    """What every head does on average.

    Attributes:
        entropy: of the weights of a query in nats, mean over queries, (layers, H)
        uniform: the same of a head that looks at all visible keys alike: the most there can be
        previous: weight on the token before, mean over the queries that have one, (layers, H); NaN where none has
    """

    entropy: Tensor
    uniform: float
    previous: Tensor


def attention_weights(query: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √E) over the visible keys, in float32 at least.

    Args:
        query: (B, H, T, E)
        key: (B, K, S, E)
        visible: as `visible_keys` gives it

    Returns:
        (B, H, T, S); zero where a key is not seen
    """
    query, key = widened(query), widened(key)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, H, S, E)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if visible is None:
        visible = causal(*scores.shape[-2:], device=scores.device)
    return scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)


def causal(queries: int, keys: int, device: torch.device | str | None = None) -> Tensor:
    """Which keys each query sees where causality is the only rule, the queries being the last positions: (T, S)."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@contextmanager
def watching_attention(model: TransformerLM, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Shows the weights of every layer as it computes; what the network computes stays the same.

    Args:
        model: the network
        see: gets the layer, from 0, and its weights, (B, H, T, S)

    Raises:
        ConfigError: for a layer that does not attend by a kernel of tinylm: its weights are not known.
    """
    layers = [_kernel_layer(number, block.attention) for number, block in enumerate(blocks_of(model))]
    kernels = [attention.attend for attention in layers]
    seen: list[str] = []

    def look(layer: int, weights: Tensor) -> None:
        seen.append(f"blocks.{layer}.attention")
        see(layer, weights)

    for attention, kernel in zip(layers, kernels, strict=True):
        attention.attend = _showing(attention, kernel, look)
    try:
        yield
        check_seen(seen, [f"blocks.{attention.layer}.attention" for attention in layers])
    finally:
        for attention, kernel in zip(layers, kernels, strict=True):
            attention.attend = kernel


def _kernel_layer(number: int, attention: nn.Module) -> Attention:
    if not isinstance(attention, Attention) or attention.attend not in (attend_plain, attend_fused):
        kind = type(attention).__name__
        raise ConfigError(
            f"blocks.{number}.attention ({kind}) does not attend by a kernel of tinylm: no weights to show"
        )
    return attention


def _showing(attention: Attention, kernel: Callable[..., Tensor], see: Callable[[int, Tensor], None]):
    def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float = 0.0) -> Tensor:
        see(attention.layer, attention_weights(query, key, visible))
        return kernel(query, key, value, visible, dropout)

    return attend


def attention_maps(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """The weights of all heads.

    Args:
        model: the network
        ids: token ids, (B, T)
        documents: as `TransformerLM.forward` takes them

    Returns:
        (layers, B, H, T, T)
    """
    maps: list[Tensor] = []
    with evaluating(model), watching_attention(model, lambda layer, weights: maps.append(weights)):
        model(ids, documents=documents)
    return torch.stack(maps)


def entropy(weights: Tensor) -> Tensor:
    """-Σ w log w over the keys, in nats: (..., S) -> (...)"""
    return -torch.special.xlogy(weights, weights).sum(dim=-1)


def head_scores(model: TransformerLM, ids: Tensor, documents: Tensor | None = None) -> HeadScores:
    """What every head does while a text is read; no weights are kept.

    Args:
        model: the network
        ids: token ids, (B, T)
        documents: as `TransformerLM.forward` takes them
    """
    entropies: list[Tensor] = []
    previous: list[Tensor] = []

    def see(layer: int, weights: Tensor) -> None:
        entropies.append(entropy(weights).mean(dim=(0, 2)))
        previous.append(weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(0, 2)))

    with evaluating(model), watching_attention(model, see):
        model(ids, documents=documents)
    T = ids.shape[1]
    visible = visible_keys(T, T, window=model.config.sliding_window, documents=documents, device=ids.device)
    seen = (causal(T, T) if visible is None else visible).sum(dim=-1)
    return HeadScores(torch.stack(entropies), seen.cpu().double().log().mean().item(), torch.stack(previous))


def induction_scores(model: TransformerLM, *, rows: int = 8, seed: int = 0) -> Tensor:
    """How far each head is an induction head: its weight on what followed the present token the first time.

    It is measured on random tokens that come twice, half a context of them (less where a window is shorter), where
    nothing else can be known; the mean is over the second time.

    Args:
        model: the network
        rows: sequences
        seed: of the tokens

    Returns:
        (layers, H); NaN where context or window are too short for any token to come twice
    """
    config = model.config
    half = min(config.max_seq_len // 2, config.sliding_window or config.max_seq_len)
    if half < 2:
        return torch.full((config.num_layers, config.num_heads), torch.nan)
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(config.vocab_size, (rows, half), generator=generator)
    found: list[Tensor] = []

    def see(layer: int, weights: Tensor) -> None:
        after = weights.diagonal(1 - half, dim1=-2, dim2=-1)[..., 1:]  # of query t the key t - half + 1, t >= half
        found.append(after.mean(dim=(0, 2)))

    with evaluating(model), watching_attention(model, see):
        model(once.repeat(1, 2).to(model.embedding.weight.device))
    return torch.stack(found)
