"""TransformerLM: a decoder-only transformer, from token ids to the logits of the next token.

GPT-2's skeleton (Radford et al. 2019): embed, a stack of blocks that each add attention and a feed-forward layer to
the residual stream, a final norm, and a projection to the vocabulary. What differs between models since then is a
field of `ModelConfig`.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylm.errors import ConfigError
from tinylm.model.attention import Attention, visible_keys, visible_places
from tinylm.model.cache import KVCache
from tinylm.model.config import ModelConfig
from tinylm.model.count import count_parameters
from tinylm.model.feedforward import make_feedforward
from tinylm.model.normalization import make_norm, widened
from tinylm.model.positional import PositionTable, rotary_table, sinusoidal_table


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.feedforward_norm = make_norm(config)
        self.feedforward = make_feedforward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor | None, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D); the other arguments are `Attention`'s."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), visible, rotary, cache))
            return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, visible, rotary, cache)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))


class TransformerLM(nn.Module):
    """A language model: `model(ids)` gives, at every position, the logits of the token that follows.

    Args:
        config: the architecture

    Attributes:
        cache_type: what `make_cache` makes: `KVCache`, or `Int8KVCache`
    """

    cache_type: type[KVCache] = KVCache

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = self._make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
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
                return PositionTable(rotary_table(config.max_seq_len, config.head_dim, config.rope_theta))
        return None

    def _initialize(self) -> None:
        """GPT-2's: N(0, 0.02) for all weights; N(0, 0.02 / √(2 layers)) for the 2 * layers that write to the stream.

        So the stream's variance does not grow with depth. With `zero_init_output` those start at zero instead.
        """
        residual_std = 0.0 if self.config.zero_init_output else 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=residual_std if name.endswith(".output") else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """The logits of the next token after each token.

        Args:
            ids: token ids, (B, T)
            documents: for `document_mask`: the document number of each token, (B, T); empty means one document
            cache: keys and values of the tokens before these; these are added to it

        Returns:
            logits, (B, T, V), in float32 at least

        Raises:
            ConfigError: for more tokens than the context holds, or documents without `document_mask`.
        """
        return self.logits(self.hidden(ids, documents=documents, cache=cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows each of some hidden states, (..., D) -> (..., V), in float32 at least."""
        return widened(self.head(hidden))

    def hidden(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """The last hidden states, (B, T, D), which `head` turns into logits.

        Args:
            ids: as `forward`'s
            documents: as `forward`'s
            cache: as `forward`'s
            counts: with a cache: how many of each row's tokens are real, where the rest is padding at the right end
        """
        T, window = ids.shape[1], self.config.sliding_window
        self._check(ids, documents, cache)
        positions, places = (slice(T), None) if cache is None else cache.place(T, counts)
        if isinstance(positions, slice):
            visible = visible_keys(T, positions.stop, window=window, documents=documents, device=ids.device)
        else:
            assert places is not None
            visible = visible_places(positions, places, window)
        x = self.read(ids, positions, visible, cache)
        if cache is not None:
            cache.advance(T, counts)
        return x

    def read(self, ids: Tensor, positions: slice | Tensor, visible: Tensor | None, cache: KVCache | None) -> Tensor:
        """`hidden` where it is known already at which positions the tokens stand and which keys they see."""
        x, rotary = self._embed(ids, positions)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, visible, rotary, cache, use_reentrant=False)
            else:
                x = block(x, visible, rotary, cache)
        return self.final_norm(x)

    def _embed(self, ids: Tensor, positions: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedded tokens, (B, T, D), with positions added or else as rotary angles: (2, T, E/2), (2, B, T, E/2)."""
        x = self.embedding(ids)  # (B, T, D)
        rotary = None
        match self.positions:
            case nn.Embedding():
                x = x + self.positions.weight[positions]
            case PositionTable() if self.config.positional_encoding == "rotary":
                rotary = self.positions(x)[:, positions]
            case PositionTable():
                x = (x + self.positions(x)[positions]).type_as(x)
        return self.dropout(x), rotary

    def _check(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> None:
        rows, length = ids.shape
        limit = self.config.max_seq_len
        if cache is not None:
            limit, length = min(limit, cache.max_len), length + max(cache.lengths)
        if length > limit:
            raise ConfigError(f"the context holds {limit} tokens, got {length}; shorten the input")
        if documents is not None and not self.config.document_mask:
            raise ConfigError("documents were given, but document_mask is off in the model's config; turn it on")
        if cache is not None and cache.batch_size != rows:
            raise ConfigError(f"the cache is for {cache.batch_size} rows, got {rows}; make one of the batch's size")
        if documents is not None and cache is not None:
            raise ConfigError("documents and a cache cannot be used together; give one document at a time")

    def make_cache(self, batch_size: int, spare: int = 0) -> KVCache:
        """A cache for this network, of its type and on its device; arguments as `KVCache`'s."""
        weight = self.embedding.weight
        return self.cache_type(self.config, batch_size, spare=spare, dtype=weight.dtype, device=weight.device)

    def num_parameters(self) -> int:
        """How many numbers the model learned, tied weights counted once, adapters not."""
        return count_parameters(self)
