"""Decoding without a cache: the model reads the whole text again for every new token.

This is the definition of generation: the next token follows from `model(ids)`, called as in training, with hooks. So it
is correct for any model, however modified. A key/value cache is correct only if a token depends on earlier ones through
their keys and values alone. A layer that looks ahead, counts positions from 0 or ignores the cache would give different
results with a cache, and no test on a few tokens could rule that out. Rows are read one by one, since an unknown layer
may mix rows or see padding.

A text of T tokens costs T passes of up to T tokens.
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
    """The tokens that each row has read, at most `max_len`: the counterpart of a key/value cache.

    Attributes:
        lengths: number of tokens read by each row
        ids: int64 (B, max_len)
    """

    def __init__(self, rows: int, max_len: int, device: torch.device) -> None:
        self.max_len, self.lengths = max_len, [0] * rows
        self.ids = torch.zeros(rows, max_len, dtype=torch.long, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of the tokens, in bytes."""
        return self.ids.nbytes

    def append(self, row: int, ids: Tensor) -> None:
        """Appends tokens, (T,), to a row."""
        length = self.lengths[row]
        self.lengths[row] = length + len(ids)
        self.ids[row, length : self.lengths[row]] = ids

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets the tokens from these lengths on, one per row."""
        self.lengths = list(lengths)

    def clear(self) -> None:
        """Forgets everything."""
        self.lengths = [0] * len(self.lengths)

    def rows(self, first: int, count: int = 1) -> "TokenRows":
        """Some rows, which share the memory but not the lengths; `adopt` hands these back."""
        rows, part = object.__new__(TokenRows), slice(first, first + count)
        rows.max_len, rows.lengths, rows.ids = self.max_len, self.lengths[part], self.ids[part]
        return rows

    def adopt(self, rows: "TokenRows", first: int) -> None:
        """Takes over the lengths of `rows(first, ...)`."""
        self.lengths[first : first + len(rows.lengths)] = rows.lengths

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        self.ids[target], self.lengths[target] = self.ids[source], self.lengths[source]

    def erase(self, first: int, count: int) -> None:
        """Forgets some rows."""
        self.lengths[first : first + count] = [0] * count

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; a row may be repeated."""
        self.ids = self.ids[torch.tensor(rows, dtype=torch.long, device=self.ids.device)]
        self.lengths = [self.lengths[row] for row in rows]


class UncachedDecoder:
    """Reads the whole text of a row for each new token. Its methods are those of `Decoder`, with `TokenRows` as cache.

    Args:
        model: the model, in evaluation mode: any module that maps ids (B, T) to logits (B, T, V)

    Attributes:
        end: id of the document separator, for models with `document_mask`
    """

    fixed_rows: ClassVar = False

    def __init__(self, model: TransformerLM) -> None:
        self.model = model
        self.end: int | None = None

    def make_cache(self, rows: int, spare: int = 0) -> TokenRows:
        """Empty rows. `spare` is ignored: any number of tokens can be truncated."""
        return TokenRows(rows, self.model.config.max_seq_len, next(self.model.parameters()).device)

    def prefill(self, parts: Sequence[Sequence[int]], cache: TokenRows, row: int | None = None) -> None:
        """Replaces the tokens of every row, or of the one `row`; computes nothing."""
        for index, part in enumerate(parts) if row is None else [(row, parts[0])]:
            cache.lengths[index] = 0
            cache.append(index, torch.tensor(part, dtype=torch.long))

    def start(self, ids: Sequence[int], cache: TokenRows) -> int:
        """Forgets a row, whose text begins with `ids`; returns the position from which `extend` must read them."""
        cache.lengths[0] = 0
        return 0

    def extend(self, ids: Sequence[int], cache: TokenRows) -> None:
        """Appends further tokens to one row."""
        cache.append(0, torch.tensor(ids, dtype=torch.long))

    def step(self, ids: Tensor, cache: TokenRows) -> Tensor:
        """Appends the next token of each row, (B,), and returns the logits after it, (B, V)."""
        for row, token in enumerate(ids):
            cache.append(row, token[None])
        return torch.cat([self._logits(cache, row) for row in range(len(ids))])

    def steps(self, ids: Sequence[int], cache: TokenRows, count: int) -> Tensor:
        """Appends several tokens to one row and returns the logits after each of the last `count`, (count, V).

        Token by token, since later tokens may affect the logits of earlier ones.
        """
        first = len(ids) - count
        cache.append(0, torch.tensor(ids[:first], dtype=torch.long))
        return torch.cat([self.step(torch.tensor([token]), cache) for token in ids[first:]])

    def _logits(self, cache: TokenRows, row: int) -> Tensor:
        """The logits after the last token of a row, (1, V)."""
        ids = cache.ids[row : row + 1, : cache.lengths[row]]  # (1, T)
        documents = documents_apart(self.model.config, ids, self.end)
        logits = self.model(ids) if documents is None else self.model(ids, documents=documents)  # (1, T, V)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise ConfigError(
                f"the model returned a {type(logits).__name__}; generation needs logits of shape (rows, tokens, V)"
            )
        return widened(logits[:, -1])
