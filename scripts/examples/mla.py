"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1; DeepSeek-V3): keys and values from one small vector.

    cp scripts/examples/mla.py .
    tinylm fit -c examples/mla.yaml --trust mla
    tinylm generate --model runs/mla --trust-code

Usual attention caches the keys and values of all heads. Here a token leaves a latent vector c, from which every head
computes its key and its value, and one short key k^R with rotary positions, which all heads share:

    c = norm(W_c x)                     stored, (L,)
    k^R = rotate(W_R x)                 stored, (R,)
    key_h = [W_K,h c; k^R]              (E,), of which the last R dimensions rotate
    value_h = W_V,h c                   (value_dim,)
    query_h = [q_h; rotate(q^R_h)]      (E,), from x, or from a latent vector of its own
    y = W_O [softmax(query_h key_hᵀ / √E) value_h, for every head h]

Rotary positions have dimensions of their own: a rotation of W_K c would lie between W_K and the query, and prevent
their product from being one matrix. A token needs L + R numbers in a layer instead of 2 H E.

Left out: absorbing W_K into the query and W_V into the output, which is the same function with fewer operations when
one token is read, and more in training.
"""

import torch
from torch import Tensor, nn

from tinylm.checks import require
from tinylm.model import KVCache, ModelConfig
from tinylm.model.attention import attend_fused, attend_plain
from tinylm.model.normalization import RMSNorm
from tinylm.model.positional import rotate


class LatentAttention(nn.Module):
    """An attention plug-in that caches one latent vector and one rotary key per token.

    E is the config's `head_dim`, of which `rotary_fraction` rotates; `qk_norm` normalizes the latent vectors.

    Args:
        config: the model's config
        layer: index of the layer
        latent: L, size of the vector from which keys and values are computed
        query_latent: size of a vector from which queries are computed. Default: queries come from x
        value_dim: dimension of a head's values. Default: the dimensions of a key that do not rotate
    """

    supports_cache = True

    def __init__(
        self, config: ModelConfig, layer: int, *, latent: int, query_latent: int | None = None,
        value_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(config, latent=latent, query_latent=query_latent, value_dim=value_dim)
        self.layer, self.heads, self.head_dim = layer, config.num_heads, config.head_dim
        self.rotary_dim, self.fixed_dim = config.rotary_dim, config.head_dim - config.rotary_dim
        self.value_dim = self.fixed_dim if value_dim is None else value_dim
        self.dropout = config.dropout
        self.attend = attend_plain if config.attention_kernel == "plain" else attend_fused
        self.scale = config.attention_scale
        self.rotates = config.layer_kinds[layer] != "N"
        D, H, E = config.d_model, config.num_heads, config.head_dim
        self.query_down = nn.Linear(D, query_latent, bias=config.biased_qkv) if query_latent else nn.Identity()
        self.query_norm = RMSNorm(query_latent, config.norm_eps) if query_latent and config.qk_norm else nn.Identity()
        self.query = nn.Linear(query_latent or D, H * E, bias=config.biased_qkv and not query_latent)
        self.latent = nn.Linear(D, latent, bias=config.biased_qkv)  # W_c
        self.latent_norm = RMSNorm(latent, config.norm_eps) if config.qk_norm else nn.Identity()
        self.rotary_key = nn.Linear(D, self.rotary_dim, bias=config.biased_qkv)  # W_R
        self.key = nn.Linear(latent, H * self.fixed_dim, bias=False)  # W_K
        self.value = nn.Linear(latent, H * self.value_dim, bias=False)  # W_V
        self.output = nn.Linear(H * self.value_dim, D, bias=config.bias)

    def forward(self, x: Tensor, visible: Tensor | None, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        query = self._heads(self.query(self.query_norm(self.query_down(x))))  # (B, T, H, E)
        latent = self.latent_norm(self.latent(x))  # (B, T, L)
        rotary_key = self.rotary_key(x)[:, :, None]  # (B, T, 1, R)
        if rotary is not None and self.rotates:
            fixed, rotated = query.split((self.fixed_dim, self.rotary_dim), dim=-1)
            query, rotary_key = torch.cat((fixed, rotate(rotated, rotary)), dim=-1), rotate(rotary_key, rotary)
        query, rotary_key, latent = query.transpose(1, 2), rotary_key.transpose(1, 2), latent[:, None]
        if cache is not None:
            latent, rotary_key = cache.append(self.layer, latent, rotary_key)  # (B, 1, S, L) and (B, 1, S, R)
        key, value = (self._heads(each(latent[:, 0])).transpose(1, 2) for each in (self.key, self.value))
        key = torch.cat((key, rotary_key.expand(-1, self.heads, -1, -1)), dim=-1)  # (B, H, S, E)
        y = self.attend(query, key, value, visible, self.dropout if self.training else 0.0, self.scale)
        return self.output(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H E) -> (B, T, H, E)"""
        return x.unflatten(-1, (self.heads, -1))

    def score_flops(self, visible: int) -> int:
        """Operations of a query's products with `visible` keys and values, forward."""
        return 2 * self.heads * (self.head_dim + self.value_dim) * visible

    @staticmethod
    def cache_shape(config: ModelConfig, *, latent: int, **_: int | None) -> tuple[int, int, int]:
        """One head, whose key is the latent vector and whose value is the rotary key."""
        return 1, latent, config.rotary_dim


def _check(config: ModelConfig, **sizes: int | None) -> None:
    for name, size in sizes.items():
        require(size is None or size >= 1, f"{name} must be at least 1, got {size}")
    require(config.rotary_dim < config.head_dim, "needs rotary positions with a rotary_fraction below 1")
    require(config.kv_heads == config.num_heads, "has keys and values for every head; leave out num_kv_heads")
    require(config.qk_norm_width == "head", "normalizes latent vectors, not heads; leave out qk_norm_width")
