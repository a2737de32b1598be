"""What NumPy lacks for words: a hash table that looks up arrays at once, and lists of different lengths in one array.

Both exist for speed alone. Python's `dict` and `list` would do, at a hundred nanoseconds a word; these take ten.
"""

import numpy as np
from numpy.typing import DTypeLike

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys end far apart
EMPTY = np.uint64(2**64 - 1)  # what a slot without key holds; nobody may ask for it


class KeyTable:
    """Numbers 64-bit keys 0, 1, 2, ... and finds the numbers of many keys at once.

        keys     17   42   17   99        numbers     0    1    0    2

    A key's slot is the upper bits of key x constant (multiplicative hashing: Knuth, The Art of Computer Programming 3,
    section 6.4); a key whose slot is taken goes to the next free one (linear probing). At most a quarter of the slots
    is taken, so few keys need a second step, and each step is done for all keys together. Keys that somebody chose to
    collide would make it slow, never wrong. Nothing is ever removed.
    """

    def __init__(self) -> None:
        self.size = 0
        self._make_slots(12)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The number of each key, -1 where it has none: uint64 (n,) -> int32 (n,)."""
        slots = self._home(keys)
        numbers = self._numbers.take(slots)  # -1 in a slot without key
        astray = np.flatnonzero(self._keys.take(slots) != keys)
        astray = astray[numbers[astray] >= 0]  # the slot is another key's
        slots = slots[astray]
        while len(astray):
            slots = (slots + 1) & self._mask
            numbers[astray] = self._numbers[slots]
            go_on = (self._keys[slots] != keys[astray]) & (numbers[astray] >= 0)
            astray, slots = astray[go_on], slots[go_on]
        return numbers

    def find_or_add(self, keys: np.ndarray) -> np.ndarray:
        """As `find`; keys without a number get the next ones, in the order of their values."""
        numbers = self.find(keys)
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            self.add(np.unique(keys[missing]))
            numbers[missing] = self.find(keys[missing])
        return numbers

    def add(self, keys: np.ndarray) -> None:
        """Gives the next numbers to keys, uint64 (n,), that differ from each other and from all earlier ones."""
        numbers = np.arange(self.size, self.size + len(keys), dtype=np.int32)
        self.size += len(keys)
        if 4 * self.size > len(self._keys):
            taken = self._numbers >= 0
            keys, numbers = np.concatenate([self._keys[taken], keys]), np.concatenate([self._numbers[taken], numbers])
            self._make_slots((4 * self.size).bit_length())
        slots = self._home(keys)
        while len(keys):
            free = self._numbers[slots] < 0
            self._keys[slots[free]] = keys[free]  # of several keys for one slot the last stays
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
    """Lists of different lengths, by number, in one array; nothing is ever removed.

    Args:
        dtype: of the lists' values
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._values, self._end = np.empty(1 << 12, dtype=dtype), 0
        self._begins, self._sizes = np.zeros(1 << 12, dtype=np.int64), np.zeros(1 << 12, dtype=np.int32)

    def reserve(self, count: int) -> None:
        """Makes room for the numbers below `count`; their lists are empty at first."""
        if count > len(self._sizes):
            more = 3 * count // 2 - len(self._sizes)
            self._begins, self._sizes = np.pad(self._begins, (0, more)), np.pad(self._sizes, (0, more))

    def put(self, numbers: np.ndarray, values: np.ndarray, sizes: np.ndarray) -> None:
        """Gives numbers (n,) their lists, which lie one after the other in `values`, and whose lengths are `sizes`."""
        end = self._end + len(values)
        if end > len(self._values):
            more = 3 * end // 2 - len(self._values)
            self._values = np.concatenate([self._values, np.empty(more, dtype=self._values.dtype)])
        self._values[self._end : end] = values
        self._begins[numbers] = self._end + np.cumsum(sizes) - sizes
        self._sizes[numbers] = sizes
        self._end = end

    def sizes(self, numbers: np.ndarray) -> np.ndarray:
        """The lengths of the lists of numbers, int32 (n,)."""
        return self._sizes.take(numbers)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The lists of numbers, one after the other."""
        return slices(self._values, self._begins.take(numbers), self._sizes.take(numbers))


def slices(values: np.ndarray, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`values[begins[0] : begins[0] + sizes[0]]` and so on, one after the other."""
    ends = np.cumsum(sizes)
    places = np.repeat(begins - (ends - sizes), sizes)
    places += np.arange(len(places))
    return values.take(places)
