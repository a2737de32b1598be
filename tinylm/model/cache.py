"""KVCache: the keys and values of the tokens read so far, so that the next token costs one position and not all.

Memory is taken once, when the cache is made: 2 * layers * B * K * (C + 1) * E numbers, for C places in each row.
Position p lies in place p mod C, so a network with a sliding window needs no more places than the window is long: what
no query sees any more is written over (a ring buffer). Without a window there is a place for every position.

Rows may have different lengths: which position a place holds follows from its row's length alone,

    C = 4, length 6      place      0  1  2  3
                         position   4  5  2  3

Gradients reach the tokens that are being read, and none that were read before.

Where documents are kept apart (`document_mask`), `begin_document` draws a line: positions before it are still counted,
and no later query sees them.

`Int8KVCache` keeps the same in a quarter of the memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.model.config import ModelConfig


class KVCache:
    """Room for the keys and values of up to `max_len` positions of every layer.

    Args:
        config: of the network
        batch_size: rows
        max_len: the most positions of a row; None: the context
        spare: how many positions `truncate` may take back though a window has moved on
        dtype: of the keys and values
        device: where they are

    Attributes:
        lengths: how many positions of each row are filled
        begins: where the documents of each row begin; only the last one is seen
        places: C, how many positions a row holds at once
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
        self.max_len = config.max_seq_len if max_len is None else max_len
        window = config.sliding_window
        self.places = self.max_len if window is None else min(self.max_len, window + spare)
        self.lengths, self.begins = [0] * batch_size, [[0] for _ in range(batch_size)]
        # One place more than is used: what is read is never the whole memory, so a step compiled for some places serves
        # for all of them.
        shape = (batch_size, config.kv_heads, self.places + 1, config.head_dim)
        self._use(self._make_memories((2 * config.num_layers, *shape), dtype, device))

    def _make_memories(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
        """What `_use` takes, empty: zeros, since NaN would come through any mask."""
        return [torch.zeros(shape, dtype=dtype, device=device)]

    def _use(self, memories: list[Tensor]) -> None:
        """Takes its memory, (2 * layers, B, K, C + 1, E): keys and values of one layer, then of the next.

        A subclass may have more than one such tensor.
        """
        self._memories = memories
        self.keys, self.values = list(memories[0].unbind()[::2]), list(memories[0].unbind()[1::2])

    @property
    def batch_size(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """The memory of keys and values."""
        return sum(memory.nbytes for memory in self._memories)

    def place(self, num_new: int, counts: Sequence[int] | None = None) -> tuple[slice | Tensor, Tensor | None]:
        """Decides where the next positions of every row go, before the layers `append` them.

        Args:
            num_new: T, how many positions
            counts: how many of each row's are real, where the rest is padding at the right end; None: all

        Returns:
            the new positions, a slice where all rows are equally long, else int64 (B, T); and the position of every key
            that `append` will return, int64 (B, S), negative where there is none; None: 0, 1, 2 ...
        """
        first, last = min(self.lengths), max(self.lengths)
        writing = not torch.is_grad_enabled()  # else what a gradient needs would be written over
        alike = first == last and self._one_document
        if writing and alike and last + num_new <= self.places:  # the common case, without any index
            self._new = slice(last, last + num_new)
            # views of all layers at once: a call for each is what costs time
            self._slots = [memory[:, :, :, self._new].unbind() for memory in self._memories]
            self._filled = [memory[:, :, :, : last + num_new].unbind() for memory in self._memories]
            return self._new, None
        device = self.keys[0].device
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        positions = lengths + torch.arange(num_new, device=device)  # (B, T)
        if num_new == 1 and writing:
            self._new, self._end = self._index(positions), min(last + 1, self.places)
            return positions, self._seen(self._held(lengths + 1, torch.arange(self._end, device=device)))
        real = num_new if counts is None else torch.tensor(counts, device=device)[:, None]
        places = torch.arange(self.places, device=device)
        # (B, C): which of the new ones a place takes; negative: none
        self._new = self._held(lengths + real, places) - lengths
        return positions, torch.cat((self._seen(self._held(lengths, places)), positions), dim=1)

    @property
    def _one_document(self) -> bool:
        """Whether no row has begun a second document."""
        return all(begins == [0] for begins in self.begins)

    def _seen(self, held: Tensor) -> Tensor:
        """The positions in each place, (B, S), those of earlier documents as if there were none."""
        if self._one_document:
            return held
        starts = torch.tensor([begins[-1] for begins in self.begins], device=held.device)[:, None]
        return held.masked_fill(held < starts, -1)

    def _index(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, heads and places of one position of each row, (B, 1), as `index_put_` takes them."""
        rows, heads = (torch.arange(size, device=positions.device) for size in self.keys[0].shape[:2])
        return rows[:, None], heads, positions % self.places

    def _held(self, lengths: Tensor, places: Tensor) -> Tensor:
        """The position in each place, (S,), of rows of some lengths, (B, 1) -> (B, S); negative in an empty place."""
        last = lengths - 1
        return last - (last - places) % self.places

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new positions of one layer where `place` decided.

        Args:
            layer: which layer, from 0
            key: (B, K, T, E)
            value: (B, K, T, E)

        Returns:
            all keys and all values that may be seen, the new ones included: (B, K, S, E) each
        """
        return self._store(2 * layer, key), self._store(2 * layer + 1, value)

    def _store(self, part: int, new: Tensor) -> Tensor:
        """Stores keys or values of a layer and gives all of them; `part` counts as `_use` says."""
        return self._put(0, part, new)

    def _put(self, memory: int, part: int, new: Tensor) -> Tensor:
        if isinstance(self._new, slice):
            self._slots[memory][part].copy_(new)
            return self._filled[memory][part]
        return self._append(self._memories[memory][part], new)

    def _append(self, stored: Tensor, new: Tensor) -> Tensor:
        assert not isinstance(self._new, slice)
        if isinstance(self._new, tuple):
            stored.index_put_(self._new, new[:, :, 0])
            return stored[:, :, : self._end]
        stored = stored[:, :, : self.places]
        everything = torch.cat((stored, new), dim=2)
        took = self._new[:, None, :, None].expand_as(stored)
        stored.copy_(torch.where(took >= 0, new.detach().gather(2, took.clamp(min=0)), stored))
        return everything

    def advance(self, num_new: int, counts: Sequence[int] | None = None) -> None:
        """Counts the positions that every layer has just stored; arguments as `place`'s."""
        new = [num_new] * self.batch_size if counts is None else counts
        self.lengths = [length + count for length, count in zip(self.lengths, new, strict=True)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets the positions from these lengths on, one for each row; at most `spare` where there is a window."""
        self.lengths = list(lengths)
        for length, begins in zip(lengths, self.begins, strict=True):
            while begins[-1] > length:
                begins.pop()

    def clear(self) -> None:
        """Forgets everything; the memory stays."""
        self.truncate([0] * self.batch_size)

    def restart(self, row: int, position: int = 0) -> None:
        """Forgets a row; what is read next is a document that begins at a position, with nothing before it."""
        self.lengths[row], self.begins[row] = position, [0, position] if position else [0]

    def begin_document(self, row: int) -> None:
        """What a row reads next is another document than what it has read."""
        self.begins[row].append(self.lengths[row])

    def row(self, index: int) -> "KVCache":
        """One row as a cache of its own, in the same memory; its length is its own."""
        cache = object.__new__(type(self))  # without taking memory of its own
        cache.max_len, cache.places = self.max_len, self.places
        cache.lengths, cache.begins = [self.lengths[index]], [list(self.begins[index])]
        cache._use([memory[:, index : index + 1] for memory in self._memories])
        return cache

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may come several times."""
        index = torch.tensor(rows, dtype=torch.long, device=self.keys[0].device)
        self._use([memory.index_select(1, index) for memory in self._memories])
        self.lengths, self.begins = [self.lengths[row] for row in rows], [list(self.begins[row]) for row in rows]


class Int8KVCache(KVCache):
    """A cache in 8 bits: each key and each value is a vector of whole numbers from -127 to 127, times one scale.

    No coordinate moves by more than half its vector's scale, 1/254 of the largest coordinate. All keys and values are
    multiplied out for every token, so this buys memory with time. Arguments and attributes as `KVCache`'s, keys and
    values being the whole numbers.
    """

    def _make_memories(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
        """Whole numbers, then scales."""
        codes = torch.zeros(shape, dtype=torch.int8, device=device)
        return [codes, torch.zeros((*shape[:-1], 1), dtype=dtype, device=device)]

    def _store(self, part: int, new: Tensor) -> Tensor:
        scales = (new.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=torch.finfo(new.dtype).tiny)
        codes = (new / scales).round().to(torch.int8)
        scales = self._put(1, part, scales)
        return self._put(0, part, codes).to(scales.dtype) * scales


class StaticCache(KVCache):
    """The memory of a cache for one more position of each row, in shapes that do not depend on each length.

    It is made anew for each token, out of tensors alone: what a compiled step needs.

    Args:
        keys: of a `KVCache`
        values: of the same
        lengths: of its rows, int64 (B, 1): the new positions
        places: 0, 1 ... S - 1, all those that are or become filled and maybe more
        starts: of the documents that the new positions are in, int64 (B, 1); None: documents are not kept apart

    Attributes:
        held: the position of every key once the new ones are there, (B, S); negative where there is none
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], lengths: Tensor, places: Tensor, starts: Tensor | None = None
    ) -> None:
        self.keys, self.values, self.places = keys, values, keys[0].shape[2] - 1
        self._new, self._end = self._index(lengths), len(places)
        self.held = self._held(lengths + 1, places)
        if starts is not None:
            self.held = self.held.masked_fill(self.held < starts, -1)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.append`."""
        return self._append(self.keys[layer], key), self._append(self.values[layer], value)
