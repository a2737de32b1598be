"""Decoding without a cache: the whole text goes through the network again for every new token.

This is the definition of what a network says, and what everything else in this folder makes faster: the next token
follows from `model(ids)`, the network called as training calls it, with its hooks. So it is right for any network, also
where nothing is known of its inside. A cache of keys and values is right only for networks that read each token by
itself, from keys and values of earlier ones: a layer that looks ahead, counts positions from 0 or ignores the cache
would say something else with it, and no trial on a few tokens could rule that out. Rows are read one by one, since a
foreign layer may mix rows, or see what fills them up.

The price: a text of T tokens costs T passes of up to T tokens.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tinylm.errors import ConfigError
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.model.normalization import widened


class TokenRows:
    """What rows of text have read so far: the tokens themselves. The counterpart of a `KVCache`.

    Args:
        rows: how many
        max_len: the most tokens of a row
        device: of the tokens

    Attributes:
        lengths: how many tokens each row has read
        ids: int64 (B, max_len)
    """

    def __init__(self, rows: int, max_len: int, device: torch.device) -> None:
        self.max_len, self.lengths = max_len, [0] * rows
        self.ids = torch.zeros(rows, max_len, dtype=torch.long, device=device)

    @property
    def num_bytes(self) -> int:
        """The memory of the tokens."""
        return self.ids.nbytes

    def append(self, row: int, ids: Tensor) -> None:
        """Adds tokens, (T,), to a row."""
        length = self.lengths[row]
        self.lengths[row] = length + len(ids)
        self.ids[row, length : self.lengths[row]] = ids

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets the tokens from these lengths on, one for each row."""
        self.lengths = list(lengths)

    def clear(self) -> None:
        """Forgets everything."""
        self.lengths = [0] * len(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may come several times."""
        self.ids = self.ids[torch.tensor(rows, dtype=torch.long, device=self.ids.device)]
        self.lengths = [self.lengths[row] for row in rows]


class UncachedDecoder:
    """Reads the whole text of a row for each new token. Methods as `Decoder`'s, with `TokenRows` for the cache.

    Args:
        model: the network, in evaluation mode: whatever gives logits (B, T, V) for ids (B, T)

    Attributes:
        end: as `Decoder`'s
    """

    fixed_rows: ClassVar = False

    def __init__(self, model: TransformerLM) -> None:
        self.model = model
        self.end: int | None = None

    def make_cache(self, rows: int, spare: int = 0) -> TokenRows:
        """For some rows; `spare` is not needed."""
        return TokenRows(rows, self.model.config.max_seq_len, next(self.model.parameters()).device)

    def prefill(self, parts: Sequence[Sequence[int]], cache: TokenRows, row: int | None = None) -> None:
        """As `Decoder.prefill`; nothing is computed."""
        for place, part in enumerate(parts) if row is None else [(row, parts[0])]:
            cache.lengths[place] = 0
            cache.append(place, torch.tensor(part, dtype=torch.long))

    def step(self, ids: Tensor, cache: TokenRows) -> Tensor:
        """As `Decoder.step`."""
        for row, token in enumerate(ids):
            cache.append(row, token[None])
        return torch.cat([self._logits(cache, row) for row in range(len(ids))])

    def steps(self, ids: Sequence[int], cache: TokenRows, count: int) -> Tensor:
        """As `Decoder.steps`, token by token: what follows in a text may act on what stands before it."""
        first = len(ids) - count
        cache.append(0, torch.tensor(ids[:first], dtype=torch.long))
        return torch.cat([self.step(torch.tensor([token]), cache) for token in ids[first:]])

    def _logits(self, cache: TokenRows, row: int) -> Tensor:
        """What follows a row, (1, V)."""
        ids = cache.ids[row : row + 1, : cache.lengths[row]]  # (1, T)
        documents = documents_apart(self.model.config, ids, self.end)
        logits = self.model(ids) if documents is None else self.model(ids, documents=documents)  # (1, T, V)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise ConfigError(
                f"the network gives a {type(logits).__name__}; generation needs logits, (rows, tokens, V)"
            )
        return widened(logits[:, -1])
