"""TransformerLM: a decoder-only transformer, from token ids to the logits of the next token.

GPT-2's skeleton (Radford et al. 2019): embed the tokens, pass them through a stack of blocks that each add attention
and a feed-forward layer to the residual stream, normalize, and project to the vocabulary. The variations
since then are fields of `ModelConfig`.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylm.errors import ConfigError
from tinylm.model.attention import make_attention, visible_keys, visible_positions
from tinylm.model.cache import KVCache
from tinylm.model.config import ModelConfig
from tinylm.model.count import count_parameters
from tinylm.model.feedforward import make_feedforward
from tinylm.model.loss import summed_loss
from tinylm.model.mup import last_norm, matrix_std, rate_factor, width_ratio
from tinylm.model.normalization import make_norm, widened
from tinylm.model.positional import PositionTable, rotary_table, sinusoidal_table
from tinylm.model.ring_cache import RingKVCache
from tinylm.plugins import Part


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to the residual stream: one after the other, or in parallel."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.form = config.norm_placement if config.residual == "sequential" else config.residual
        self.attention_norm = make_norm(config)
        self.attention = make_attention(config, layer)
        self.feedforward_norm = nn.Identity() if self.form == "parallel_one_norm" else make_norm(config)
        self.feedforward = make_feedforward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor | None, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D); the other arguments are those of `Attention.forward`."""
        if self.form == "pre":
            x = x + self.dropout(self.attention(self.attention_norm(x), visible, rotary, cache))
            return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        if self.form == "post":
            x = self.attention_norm(x + self.dropout(self.attention(x, visible, rotary, cache)))
            return self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        if self.form == "output":
            x = x + self.dropout(self.attention_norm(self.attention(x, visible, rotary, cache)))
            return x + self.dropout(self.feedforward_norm(self.feedforward(x)))
        normed = self.attention_norm(x)  # parallel
        other = self.feedforward_norm(x) if self.form == "parallel" else normed
        attended = self.attention(normed, visible, rotary, cache)
        return x + self.dropout(attended) + self.dropout(self.feedforward(other))


class TransformerLM(nn.Module):
    """A language model: `model(ids)` gives, at every position, the logits of the next token.

    Args:
        config: the architecture

    Attributes:
        cache_type: class of the caches that `make_cache` makes, `RingKVCache` or `Int8KVCache`
        loss_rows: tokens whose logits exist at a time when the loss is computed; None: all
    """

    cache_type: type[RingKVCache] = RingKVCache
    loss_rows: int | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = self._make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.windows = [config.window(kind) for kind in config.layer_kinds]
        self.masks = list(dict.fromkeys(self.windows))  # a mask for each window; with layer_pattern two
        self.visible_keys: Callable[..., Any] = visible_keys  # long masks on GPUs: kernels/block_masks.py
        self.final_norm = nn.Identity() if config.norm_placement == "post" else make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        self._initialize()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @staticmethod
    def _make_positions(config: ModelConfig) -> nn.Module | None:
        match config.positional_encoding:
            case "learned":
                return nn.Embedding(config.max_seq_len, config.d_model)
            case "sinusoidal":
                return PositionTable(sinusoidal_table(config.max_seq_len, config.d_model))
            case "rotary":
                table = rotary_table(config.max_seq_len, config.rotary_dim, config.rope_theta, config.rope_scaling)
                return PositionTable(table)
            case Part() as own:
                return own.make(config, field="positional_encoding", kind=nn.Module)
        return None

    def _initialize(self) -> None:
        """GPT-2's initialization: N(0, 0.02), and N(0, 0.02 / √(2 layers)) where a sublayer writes to the stream.

        The variance of the stream then does not grow with depth. `zero_init_output` starts these projections at zero.
        `mup_base_width` scales the blocks' matrices and the last norm (mup.py).
        """
        residual_std = 0.0 if self.config.zero_init_output else 0.02 / math.sqrt(2 * self.config.num_layers)
        own = tuple(f"{name}." for name, each in self.named_modules() if getattr(each, "own_initialization", False))
        for name, module in self.named_modules():
            if f"{name}.".startswith(own):
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(".output") else 0.02
                nn.init.normal_(module.weight, std=matrix_std(self.config, name, std))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.config.mup_base_width is not None:
            norm: Any = self.get_submodule(last_norm(self.config))
            nn.init.constant_(norm.weight, 1 / width_ratio(self.config))

    def forward(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        skip: int = 0,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Computes the logits of the next token after each token, or with targets their loss.

        Args:
            ids: token ids, (B, T)
            documents: document number of each token, (B, T), for `document_mask`. None: each row is one document
            cache: keys and values of the preceding tokens, to which those of `ids` are appended
            skip: number of leading tokens whose logits are not computed
            targets: the next tokens, (B, T - skip), or IGNORE; for training, where logits are not kept (loss.py)

        Returns:
            logits, (B, T - skip, V), in at least float32; with targets their summed loss in nats, a scalar

        Raises:
            ConfigError: if the context cannot hold the tokens, or documents are given without `document_mask`.
        """
        self._check(ids, documents, cache)
        positions, keys = (slice(ids.shape[1]), None) if cache is None else cache.reserve(ids.shape[1])
        if isinstance(positions, slice):
            mask = partial(self.visible_keys, ids.shape[1], positions.stop, documents=documents, device=ids.device)
        else:
            assert keys is not None
            mask = partial(visible_positions, positions, keys)
        visible = dict(zip(self.masks, map(mask, self.masks), strict=True))
        x, rotary = self.embedding(ids), None  # (B, T, D)
        match self.positions, self.config.positional_encoding:
            case nn.Embedding(), "learned":
                x = x + self.positions(self._numbers(positions, ids))
            case PositionTable(), "rotary":
                rotary = self.positions(x)[:, positions]  # (2, T, R/2), or (2, B, T, R/2)
            case PositionTable(), "sinusoidal":
                x = (x + self.positions(x)[positions]).type_as(x)
            case nn.Module(), Part():
                x, rotary = self.positions(x, self._numbers(positions, ids))
        x = self.dropout(x)
        for block, window in zip(self.blocks, cycle(self.windows), strict=False):
            if self.config.activation_checkpointing and self.training:
                block = partial(checkpoint, block, use_reentrant=False)
            x = block(x, visible[window], rotary, cache)
        x = self.final_norm(x)[:, skip:]
        return widened(self.head(x)) if targets is None else summed_loss(self.head, x, targets, self.loss_rows)

    def _numbers(self, positions: slice | Tensor, ids: Tensor) -> Tensor:
        """Positions as int64 on the device of ids, (T,) or (B, T)."""
        return torch.arange(self.config.max_seq_len, device=ids.device)[positions]

    def _check(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> None:
        read, limit = (0, self.config.max_seq_len) if cache is None else (cache.length, cache.max_len)
        if read + ids.shape[1] > limit:
            raise ConfigError(f"the context holds {limit} tokens, got {read + ids.shape[1]}; shorten the input")
        if cache is not None and cache.batch_size != len(ids):
            raise ConfigError(f"the cache has {cache.batch_size} rows, got {len(ids)}; give each text its row")
        if documents is not None and (cache is not None or not self.config.document_mask):
            off = "document_mask is off in the model's config; turn it on"
            reason = "a cache holds one document at a time; read one after another" if cache is not None else off
            raise ConfigError(f"documents were given, but {reason}")

    def make_cache(self, batch_size: int, spare: int = 0) -> RingKVCache:
        """An empty cache of `cache_type` for this model, on its device; the arguments are those of `RingKVCache`."""
        weight = self.embedding.weight
        return self.cache_type(self.config, batch_size, spare=spare, dtype=weight.dtype, device=weight.device)

    def rate_factors(self, optimizer: str) -> dict[nn.Parameter, float]:
        """Factors of the learning rate by which muP (mup.py) differs from the same rate for all."""
        return {each: rate_factor(self.config, name, each, optimizer) for name, each in self.named_parameters()}

    def num_parameters(self) -> int:
        """Number of parameters, tied weights counted once, LoRA adapters left out."""
        return count_parameters(self)
