"""Two vectorized containers that NumPy lacks: a hash table and a ragged array.

Both exist for speed alone. Python's `dict` and `list` take about 100 ns per word; these take about 10 ns.
"""

import numpy as np
from numpy.typing import DTypeLike

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbouring keys over the table
EMPTY = np.uint64(2**64 - 1)  # marks a free slot; not a valid key


class KeyTable:
    """Maps 64-bit keys to the numbers 0, 1, 2, ..., with vectorized lookup.

        keys     17   42   17   99        numbers     0    1    0    2

    Multiplicative hashing: a key's slot is given by the upper bits of key x constant (Knuth, The Art of Computer
    Programming 3, section 6.4). Linear probing: if that slot is taken, the key goes to the next free one. The load
    factor is at most 1/3, so few keys need a second probe, and each probe is one array operation over all unresolved
    keys. Adversarial keys make the table slow but never wrong. Keys are never removed.
    """

    def __init__(self) -> None:
        self.size = 0
        self._make_slots(12)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the number of each key, or -1 if it is absent: uint64 (n,) -> int32 (n,)."""
        slots = self._home(keys)
        numbers = self._numbers.take(slots)  # -1 if the slot is free
        unresolved = np.flatnonzero(self._keys.take(slots) != keys)
        unresolved = unresolved[numbers[unresolved] >= 0]  # the slot holds another key
        slots = slots[unresolved]
        while len(unresolved):
            slots = (slots + 1) & self._mask
            numbers[unresolved] = self._numbers[slots]
            unequal = (self._keys[slots] != keys[unresolved]) & (numbers[unresolved] >= 0)
            unresolved, slots = unresolved[unequal], slots[unequal]
        return numbers

    def find_or_add(self, keys: np.ndarray) -> np.ndarray:
        """Like `find`, but adds the missing keys first, in ascending order."""
        numbers = self.find(keys)
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            self.add(np.unique(keys[missing]))
            numbers[missing] = self.find(keys[missing])
        return numbers

    def add(self, keys: np.ndarray) -> None:
        """Gives the next numbers to new keys, uint64 (n,), which must be distinct and absent from the table."""
        numbers = np.arange(self.size, self.size + len(keys), dtype=np.int32)
        self.size += len(keys)
        if 3 * self.size > len(self._keys):
            taken = self._numbers >= 0
            keys, numbers = np.concatenate([self._keys[taken], keys]), np.concatenate([self._numbers[taken], numbers])
            self._make_slots((3 * self.size).bit_length())
        slots = self._home(keys)
        while len(keys):
            free = self._numbers[slots] < 0
            self._keys[slots[free]] = keys[free]  # if several keys want one slot, the last one gets it
            placed = self._keys[slots] == keys
            self._numbers[slots[placed]] = numbers[placed]
            keys, numbers, slots = keys[~placed], numbers[~placed], (slots[~placed] + 1) & self._mask

    def _make_slots(self, bits: int) -> None:
        self._keys = np.full(1 << bits, EMPTY)
        self._numbers = np.full(1 << bits, -1, dtype=np.int32)
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * MULTIPLIER) >> self._shift).view(np.int64)


class Ragged:
    """A ragged array: lists of different lengths, stored one after another and indexed by number.

    Lists are never removed.

    Args:
        dtype: the type of the values
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._values, self._end = np.empty(1 << 12, dtype=dtype), 0
        self._begins, self._sizes = np.zeros(1 << 12, dtype=np.int64), np.zeros(1 << 12, dtype=np.int32)

    def reserve(self, count: int) -> None:
        """Ensures that every number below `count` has a list; new lists are empty."""
        if count > len(self._sizes):
            more = 3 * count // 2 - len(self._sizes)
            self._begins, self._sizes = np.pad(self._begins, (0, more)), np.pad(self._sizes, (0, more))

    def put(self, numbers: np.ndarray, values: np.ndarray, sizes: np.ndarray) -> None:
        """Sets the lists of `numbers`, (n,), given as concatenated `values` and their `sizes`, (n,)."""
        end = self._end + len(values)
        if end > len(self._values):
            more = 3 * end // 2 - len(self._values)
            self._values = np.concatenate([self._values, np.empty(more, dtype=self._values.dtype)])
        self._values[self._end : end] = values
        self._begins[numbers] = self._end + np.cumsum(sizes) - sizes
        self._sizes[numbers] = sizes
        self._end = end

    def sizes(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the length of each list, int32 (n,)."""
        return self._sizes.take(numbers)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the lists of `numbers`, concatenated."""
        return slices(self._values, self._begins.take(numbers), self._sizes.take(numbers))


def slices(values: np.ndarray, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Concatenates the slices `values[begins[i] : begins[i] + sizes[i]]`."""
    ends = np.cumsum(sizes)
    indices = np.repeat(begins - (ends - sizes), sizes)
    indices += np.arange(len(indices))
    return values.take(indices)
