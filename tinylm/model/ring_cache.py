"""RingKVCache: a key/value cache for rows of different lengths, sliding windows, truncation and documents.

Memory is allocated once: 2 * layers * B * K * (C + 1) * E numbers for C slots per row. Position p lies in slot p mod C.
A model with a sliding window needs only as many slots as the window is long, since a new key overwrites one that no
later query can see (a ring buffer). Without a window there is a slot for every position.

The position held by a slot follows from the length of its row alone, so rows of different lengths need no bookkeeping:

    C = 4, length 6      slot      0  1  2  3
                         position  4  5  2  3

Gradients flow to the tokens being read, never to tokens read earlier. With `document_mask`, `begin_document` separates
documents: earlier positions still count toward the length, but no later query sees them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.model.cache import KVCache
from tinylm.model.config import ModelConfig


def cache_shape(config: ModelConfig) -> tuple[int, int, int]:
    """Heads, key dimension and value dimension of what a layer stores per token: (K, E, E), or those of a plug-in."""
    own = None if config.attention is None else getattr(config.attention.load(), "cache_shape", None)
    if own is None or config.attention is None:
        return config.kv_heads, config.head_dim, config.head_dim
    return own(config, **config.attention.init_args)


class RingKVCache(KVCache):
    """Keys and values of every layer, for up to `max_len` positions per row.

    The arguments are those of `KVCache`, and `spare`: slots kept beyond the window, so that `truncate` can undo that
    many positions.

    Attributes:
        lengths: number of positions read by each row
        begins: first positions of the documents of each row; only the last document is visible
        num_slots: C, slots per row
        keys: of each layer, (B, K, C + 1, E)
        values: of each layer, (B, K, C + 1, E)
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int | None = None,
        *,
        spare: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_len = config.max_seq_len if max_len is None else min(max_len, config.max_seq_len)
        window = config.sliding_window if set(config.layer_kinds) == {"S"} else None  # a full layer keeps all positions
        self.num_slots = self.max_len if window is None else min(self.max_len, window + spare)
        self.lengths, self.begins = [0] * batch_size, [[0] for _ in range(batch_size)]
        self._counts: Sequence[int] | None = None
        # One extra slot, so that a slice never spans the buffer and one compiled step fits all lengths.
        heads, *widths = cache_shape(config)
        shapes = [(config.num_layers, batch_size, heads, self.num_slots + 1, width) for width in widths]
        self._use(self._allocate(shapes, dtype, device))

    def _allocate(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
        """New buffers for `_use`, zero-filled: NaN survives masking. The shapes are those of keys and values."""
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    def _use(self, buffers: list[Tensor]) -> None:
        """Stores in these buffers, (layers, B, K, C + 1, ...): keys, values, and what a subclass adds."""
        self._buffers = buffers
        self.keys, self.values = list(buffers[0].unbind()), list(buffers[1].unbind())

    @property
    def batch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of rows."""
        return len(self.lengths)

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of positions read by the longest row."""
        return max(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def expect(self, counts: Sequence[int]) -> None:
        """Declares the next tokens padded on the right: only the first `counts[row]` tokens of each row are stored."""
        self._counts = counts

    def reserve(self, num_new: int) -> tuple[slice | Tensor, Tensor | None]:
        """Reserves slots for the next tokens of every row, which the layers then `append`.

        Args:
            num_new: T, tokens per row

        Returns:
            the new positions, a slice if all rows have the same length, else int64 (B, T); and the position of every
            key that `append` returns, int64 (B, S), negative for an empty slot (None: 0, 1, 2, ...)
        """
        reserved = self._reserve(num_new)
        self.advance(num_new)
        return reserved

    def _reserve(self, num_new: int) -> tuple[slice | Tensor, Tensor | None]:
        first, last = min(self.lengths), max(self.lengths)
        overwrite = not torch.is_grad_enabled()  # a gradient may still need the old contents
        aligned = first == last and self._one_document
        if overwrite and aligned and last + num_new <= self.num_slots:  # the common case, without an index
            self._new = slice(last, last + num_new)
            # views of all layers at once: one call per layer would be slower
            self._targets = [buffer[:, :, :, self._new].unbind() for buffer in self._buffers]
            self._filled = [buffer[:, :, :, : last + num_new].unbind() for buffer in self._buffers]
            return self._new, None
        device = self.keys[0].device
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        positions = lengths + torch.arange(num_new, device=device)  # (B, T)
        if num_new == 1 and overwrite:
            self._new, self._end = self._index(positions), min(last + 1, self.num_slots)
            return positions, self._visible(self._held(lengths + 1, torch.arange(self._end, device=device)))
        real = num_new if self._counts is None else torch.tensor(self._counts, device=device)[:, None]
        slots = torch.arange(self.num_slots, device=device)
        # (B, C): the new token that a slot receives, negative for none
        self._new = self._held(lengths + real, slots) - lengths
        return positions, torch.cat((self._visible(self._held(lengths, slots)), positions), dim=1)

    @property
    def _one_document(self) -> bool:
        """Whether no row has begun a second document."""
        return all(begins == [0] for begins in self.begins)

    def _visible(self, held: Tensor) -> Tensor:
        """Positions in slots, (B, S), with those of earlier documents marked as empty."""
        if self._one_document:
            return held
        starts = torch.tensor([begins[-1] for begins in self.begins], device=held.device)[:, None]
        return held.masked_fill(held < starts, -1)

    def _index(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, heads and slots of one position per row, (B, 1), in the form that `index_put_` takes."""
        rows, heads = (torch.arange(size, device=positions.device) for size in self.keys[0].shape[:2])
        return rows[:, None], heads, positions % self.num_slots

    def _held(self, lengths: Tensor, slots: Tensor) -> Tensor:
        """The position held by each slot, (S,), of rows of given lengths, (B, 1) -> (B, S); negative if empty."""
        last = lengths - 1
        return last - (last - slots) % self.num_slots

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new keys and values of one layer, (B, K, T, E) each, in the slots chosen by `reserve`.

        Returns:
            all visible keys and values, the new ones included: (B, K, S, E) each
        """
        return self._store(0, layer, key), self._store(1, layer, value)

    def _store(self, kind: int, layer: int, new: Tensor) -> Tensor:
        """Stores keys (kind 0) or values (1) of a layer and returns all of them."""
        return self._put(kind, layer, new)

    def _put(self, buffer: int, layer: int, new: Tensor) -> Tensor:
        if isinstance(self._new, slice):
            self._targets[buffer][layer].copy_(new)
            return self._filled[buffer][layer]
        return self._scatter(self._buffers[buffer][layer], new)

    def _scatter(self, stored: Tensor, new: Tensor) -> Tensor:
        assert not isinstance(self._new, slice)
        if isinstance(self._new, tuple):
            stored.index_put_(self._new, new[:, :, 0])
            return stored[:, :, : self._end]
        stored = stored[:, :, : self.num_slots]
        everything = torch.cat((stored, new), dim=2)
        source = self._new[:, None, :, None].expand_as(stored)
        stored.copy_(torch.where(source >= 0, new.detach().gather(2, source.clamp(min=0)), stored))
        return everything

    def advance(self, num_new: int) -> None:
        """Counts new tokens in the length of every row."""
        counts = [num_new] * self.batch_size if self._counts is None else self._counts
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self._counts = None

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets the positions from these lengths on, one per row; with a window at most `spare` positions."""
        self.lengths = list(lengths)
        for length, begins in zip(lengths, self.begins, strict=True):
            while begins[-1] > length:
                begins.pop()

    def clear(self) -> None:
        """Forgets everything; the memory is kept."""
        self.truncate([0] * self.batch_size)

    def restart(self, row: int, position: int = 0) -> None:
        """Forgets a row. Its next token begins a document at `position`."""
        self.lengths[row], self.begins[row] = position, [0, position] if position else [0]

    def begin_document(self, row: int) -> None:
        """Begins a new document in a row: the next tokens do not see the earlier ones."""
        self.begins[row].append(self.lengths[row])

    def rows(self, first: int, count: int = 1) -> "RingKVCache":
        """Some rows as a cache that shares the memory but not the lengths, which `adopt` hands back."""
        cache, part = object.__new__(type(self)), slice(first, first + count)  # allocates nothing
        cache.max_len, cache.num_slots, cache._counts = self.max_len, self.num_slots, None
        cache.lengths, cache.begins = self.lengths[part], [list(begins) for begins in self.begins[part]]
        cache._use([buffer[:, part] for buffer in self._buffers])
        return cache

    def adopt(self, rows: "RingKVCache", first: int) -> None:
        """Takes over the lengths and documents of `rows(first, ...)`."""
        part = slice(first, first + rows.batch_size)
        self.lengths[part], self.begins[part] = rows.lengths, [list(begins) for begins in rows.begins]

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        for buffer in self._buffers:
            buffer[:, target] = buffer[:, source]
        self.lengths[target], self.begins[target] = self.lengths[source], list(self.begins[source])

    def erase(self, first: int, count: int) -> None:
        """Forgets some rows and overwrites their memory: a NaN that a text left behind would survive masking."""
        for buffer in self._buffers:
            buffer[:, first : first + count] = 0
        for row in range(first, first + count):
            self.restart(row)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; a row may be repeated."""
        index = torch.tensor(rows, dtype=torch.long, device=self.keys[0].device)
        self._use([buffer.index_select(1, index) for buffer in self._buffers])
        self.lengths, self.begins = [self.lengths[row] for row in rows], [list(self.begins[row]) for row in rows]
