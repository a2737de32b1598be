"""Causal self-attention (Vaswani et al. 2017) with any number of key/value heads.

K = H key/value heads are multi-head attention, K = 1 is multi-query attention (Shazeer 2019), and anything between is
grouped-query attention (Ainslie et al. 2023). Two kernels compute the same function: `attend_plain` is the formula;
`attend_fused` is PyTorch's kernel, FlashAttention on CUDA, which never stores the (T, S) weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model.cache import KVCache
from tinylm.model.config import ModelConfig
from tinylm.model.normalization import make_qk_norm
from tinylm.model.positional import rotate


def document_numbers(ids: Tensor, end: int | None) -> Tensor | None:
    """Numbers the documents of each row, (B, T) -> (B, T); None if there is no separator.

    The separator, `end`, belongs to the document that it ends.
    """
    if end is None:
        return None
    ends = ids == end
    return ends.cumsum(dim=1) - ends.long()


def documents_apart(config: ModelConfig, ids: Tensor, end: int | None, known: Tensor | None = None) -> Tensor | None:
    """The `documents` argument of `TransformerLM.forward`: `known`, or numbers counted by separators.

    None unless the config sets `document_mask`.
    """
    if not config.document_mask:
        return None
    return document_numbers(ids, end) if known is None else known


def visible_keys(
    num_queries: int,
    num_keys: int,
    window: int | None = None,
    documents: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """The attention mask. The queries occupy the last T of the S positions.

    Args:
        num_queries: T
        num_keys: S, at least T
        window: number of positions that a query sees, itself included
        documents: document number of each position, (B, S); requires T = S
        device: device of the mask

    Returns:
        True where a query sees a key, (T, S), or (B, 1, T, S) with documents. None where no matrix is needed: a causal
        mask with T = S, or a single query that sees every key.
    """
    if documents is None and (window is None or window >= num_keys) and num_queries in (1, num_keys):
        return None
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]  # (T, 1)
    key = torch.arange(num_keys, device=device)  # (S,)
    visible = key <= query  # (T, S)
    if window is not None:
        visible &= key > query - window
    if documents is not None:
        same = documents[:, :, None] == documents[:, None, :]  # (B, T, S)
        visible = (visible & same)[:, None]  # (B, 1, T, S)
    return visible


def visible_positions(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """The attention mask of rows with different positions: True where a query sees a key, (B, 1, T, S).

    Args:
        queries: position of each query, (B, T)
        keys: position of each key, (B, S), negative for none
        window: number of positions that a query sees, itself included
    """
    query, key = queries[:, :, None], keys[:, None, :]  # (B, T, 1), (B, 1, S)
    visible = (key >= 0) & (key <= query)
    if window is not None:
        visible &= key > query - window
    return visible[:, None]


def attend_plain(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """softmax(q kᵀ / √E) v over the visible keys. Query head h reads key/value head h // (H/K).

    Args:
        query: (B, H, T, E)
        key: (B, K, S, E)
        value: (B, K, S, E)
        visible: the mask of `visible_keys`
        dropout: probability of dropping an attention weight
        scale: factor of q kᵀ in place of 1/√E

    Returns:
        (B, H, T, E)
    """
    B, H, T, E = query.shape
    _, K, S, _ = key.shape
    grouped = query.reshape(B, K, H // K * T, E)  # the heads of a group share keys: one product for all
    scores = (grouped @ key.transpose(-1, -2)).view(B, H, T, S) * (E**-0.5 if scale is None else scale)
    if visible is None and T > 1:
        visible = torch.ones(T, S, dtype=torch.bool, device=query.device).tril()
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B, H, T, S)
    return (weights.view(B, K, H // K * T, S) @ value).view(B, H, T, E)


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """`attend_plain` by PyTorch's fused kernel."""
    causal = query.shape[2] > 1 and visible is None  # in this order torch.compile gets a bool
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, visible, dropout, causal, scale=scale, enable_gqa=grouped)


class Attention(nn.Module):
    """Projects to queries, keys and values, attends, and projects back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = E = config.head_dim
        self.dropout = config.dropout
        self.attend = attend_plain if config.attention_kernel == "plain" else attend_fused
        self.scale = config.attention_scale
        self.rotates = config.layer_kinds[layer] != "N"
        D, H, K = config.d_model, config.num_heads, config.kv_heads
        self.query = nn.Linear(D, H * E, bias=config.biased_qkv)
        self.key = nn.Linear(D, K * E, bias=config.biased_qkv)
        self.value = nn.Linear(D, K * E, bias=config.biased_qkv)
        self.output = nn.Linear(H * E, D, bias=config.bias)
        self.query_norm = make_qk_norm(config, H) if config.qk_norm else None
        self.key_norm = make_qk_norm(config, K) if config.qk_norm else None

    def forward(self, x: Tensor, visible: Tensor | None, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)

        Args:
            x: residual stream or its norm, (B, T, D)
            visible: the mask of `visible_keys`
            rotary: rows of the rotary table for these positions, (2, T, R/2) or (2, B, T, R/2)
            cache: keys and values of earlier tokens, to which those of the new tokens are appended
        """
        heads = (*x.shape[:2], -1, self.head_dim)  # (B, T, H, E) of queries, (B, T, K, E) of keys and values
        query, key, value = self.query(x).view(heads), self.key(x).view(heads), self.value(x).view(heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None and self.rotates:
            query, key = rotate(query, rotary), rotate(key, rotary)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, heads, T, E)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)  # (B, K, S, E)
        y = self.attend(query, key, value, visible, self.dropout if self.training else 0.0, self.scale)  # (B, H, T, E)
        return self.output(y.transpose(1, 2).flatten(2))  # (B, T, D)


def make_attention(config: ModelConfig, layer: int) -> Attention:
    """The attention of a layer: that of the config, which need not be a subclass (plugin.py), or `Attention`."""
    if config.attention is None:
        return Attention(config, layer)
    return config.attention.make(config, layer, field="attention", kind=nn.Module)
