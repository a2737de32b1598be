"""WordPiece training with NumPy: learns the pieces of the highest scores.

`textbook_wordpiece.learn_pieces` recounts all pairs for every merge. A merge changes few counts, however: the counts of
the two pieces, and of the pairs on either side of each occurrence. But a score rises when its pieces become rarer, so a
priority queue of former scores (as in learning.py) would miss the best pair. Instead the scores of all pairs lie in one
array. A merge updates the scores of the pairs with one of its pieces; `argmax` finds the next merge.

The distinct words are linked lists in arrays, with one cell per character. A piece is stored in its first cell:

    word        h  ##u  ##g  ##s         ##u ##g -> ##ug       h ##ug   -  ##s
    onward      1    1    1    0                               1    2   -    0
    back        0    1    1    1                               0    1   -    2

`onward` and `back` are the distances to the next and the previous piece, 0 at either end: one byte each, as words are
short. The occurrences of all pairs lie in two arrays, too: the first cell of each, and the former occurrence of the
same pair. A list per pair would take three times the memory, since most pairs occur in a single word.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

SLICE = 1 << 13  # characters counted, or pairs rated, at once; bounds the memory
NOTHING = -1  # in a cell without a piece
NONE = -1  # no earlier occurrence


def _int_array(values: np.ndarray) -> "array[int]":
    """The values in an array that can grow."""
    return array("i", values.astype(np.int32, copy=False).tobytes())


class PairTable:
    """Numbers pairs 0, 1, 2, ...: a dictionary for one lookup at a time, in a fifth of the memory of Python's `dict`.

    A hash table with linear probing. Its slots hold numbers only; the keys are read from the list of all pairs.

    Args:
        keys: the first pairs, each as left << 32 | right, distinct, int64 (n,)
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = array("q", keys.data)
        self._make_slots()

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self._keys)

    def parts(self, numbers: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """The left and the right pieces of pairs, int64 (n,) each."""
        keys = np.frombuffer(self._keys, dtype=np.int64).take(numbers)
        return keys >> 32, keys & 0xFFFFFFFF

    def find_or_add(self, key: int) -> int:
        """Returns the number of a pair; a new pair gets the next number."""
        slots, keys = self._slots, self._keys
        slot = key % len(slots)
        while (number := slots[slot]) != NONE:
            if keys[number] == key:
                return number
            slot -= 1  # the last slot comes before slot 0
        slots[slot] = number = len(keys)
        keys.append(key)
        if 2 * len(keys) > len(slots):
            self._make_slots()
        return number

    def _make_slots(self) -> None:
        self._slots = slots = array("i", [NONE]) * (4 * len(self._keys) + 1)
        for number, key in enumerate(self._keys):
            slot = key % len(slots)
            while slots[slot] != NONE:
                slot -= 1
            slots[slot] = number


class ScoreLearner:
    """Learns merges by the score count(ab) / (count(a) count(b)) from counted words.

    Of pairs with equal scores the most frequent is merged, and of equally frequent ones the first by `names`.

    Args:
        characters: the numbers of the characters of the distinct words, concatenated, int (n,); a character that
            continues a word has another number than the same one at its beginning
        sizes: characters of each word, int (words,)
        counts: number of occurrences of each word, int (words,)
        names: the string of each number; the strings of merged pieces are appended
        mark: the prefix of continuing pieces; no other piece begins with it
        min_frequency: the least number of occurrences of a merged pair. None: a falling limit, which starts at half
            the count of the most frequent pair and is halved whenever no pair is left
    """

    def __init__(
        self,
        characters: np.ndarray,
        sizes: np.ndarray,
        counts: np.ndarray,
        names: list[str],
        mark: str,
        min_frequency: int | None = 1,
    ) -> None:
        self._names, self._mark, self._falls = names, mark, min_frequency is None
        self._numbers = {name: number for number, name in enumerate(names)}
        cells, ends = characters.astype(np.int32, copy=False), np.cumsum(sizes)
        weights = np.repeat(counts.astype(np.min_scalar_type(counts.max())), sizes)
        self._singles = np.zeros(len(names), dtype=np.int64)
        for i in range(0, len(cells), SLICE):
            self._singles += np.bincount(cells[i : i + SLICE], weights[i : i + SLICE], len(names)).astype(np.int64)
        onward = np.ones(len(cells), dtype=np.min_scalar_type(sizes.max(initial=0)))
        back = onward.copy()
        onward[ends - 1] = back[ends - sizes] = 0
        self._number_pairs(cells, np.flatnonzero(onward).astype(np.int32), weights)
        self._least = int(self._counts.max(initial=2)) // 2 if min_frequency is None else max(min_frequency, 1)
        self._rate_all()
        # memoryviews: faster for single elements
        self._cells, self._weights, self._onward, self._back = (each.data for each in (cells, weights, onward, back))

    def _number_pairs(self, cells: np.ndarray, firsts: np.ndarray, weights: np.ndarray) -> None:
        """Numbers all pairs, whose first cells are `firsts`, in their order, and counts them."""
        keys = cells[firsts].astype(np.int64)
        keys <<= 32
        keys |= cells[firsts + np.int32(1)]
        firsts = firsts[np.argsort(keys, kind="stable")]
        keys.sort()
        opens = np.ones(len(keys), dtype=bool)  # whether an occurrence is the first one of its pair
        np.not_equal(keys[1:], keys[:-1], out=opens[1:])
        begins = np.flatnonzero(opens)
        keys = keys[begins]
        self._pairs = PairTable(keys)
        self._counts = np.add.reduceat(weights[firsts], begins, dtype=np.int64) if len(begins) else begins
        self._scores = np.zeros(len(keys))
        self._places = _int_array(firsts)  # of occurrences
        before = np.arange(-1, len(firsts) - 1, dtype=np.int32)
        before[begins] = NONE
        self._before = _int_array(before)
        self._free = NONE  # entry of these arrays, from which `_before` leads to the other free ones
        self._last = _int_array(np.append(begins[1:], len(firsts)) - 1)  # occurrence of each pair
        self._of: defaultdict[int, array[int]] = defaultdict(lambda: array("i"))  # piece -> its pairs
        for number, key in enumerate(keys.tolist()):
            self._of[key >> 32].append(number)
            self._of[key & 0xFFFFFFFF].append(number)

    def _rate(self, pairs: np.ndarray) -> None:
        """Updates the scores of pairs; 0 for those that are too rare."""
        counts = self._counts.take(pairs)
        lefts, rights = self._pairs.parts(pairs)
        products = self._singles.take(lefts) * self._singles.take(rights)
        self._scores[pairs] = np.where(counts >= self._least, counts / np.maximum(products, 1), 0)

    def _rate_all(self) -> None:
        for first in range(0, self._pairs.size, SLICE):
            self._rate(np.arange(first, min(first + SLICE, self._pairs.size)))

    def learn(self, num_pieces: int) -> Iterator[str]:
        """Yields each piece as it is learned.

        Args:
            num_pieces: number of pieces at which to stop, characters included; learning ends earlier if no pair is left
        """
        while len(self._names) < num_pieces and len(self._scores):
            best = int(self._scores.argmax())
            if not self._scores[best]:
                if not self._falls or self._least == 1:
                    return
                self._least = max(self._least // 2, 1)
                self._rate_all()
                continue
            best = self._first_of_equals(best)
            known = len(self._names)
            self._merge(best)
            if len(self._names) > known:
                yield self._names[-1]

    def _first_of_equals(self, best: int) -> int:
        """Of the pairs with this pair's score, the most frequent, and of those the first by name."""
        equals = np.flatnonzero(self._scores == self._scores[best])
        if len(equals) > 1:
            counts = self._counts[equals]
            equals = equals[counts == counts.max()]
        if len(equals) == 1:
            return int(equals[0])
        lefts, rights = (each.tolist() for each in self._pairs.parts(equals))
        named = zip(
            map(self._names.__getitem__, lefts), map(self._names.__getitem__, rights), equals.tolist(), strict=True
        )
        return min(named)[-1]

    def _merge(self, pair: int) -> None:
        left, right = (int(each) for each in self._pairs.parts(pair))
        piece = self._joined(left, right)
        changes: defaultdict[int, int] = defaultdict(int)  # pair, as key -> change of its count
        new: defaultdict[int, list[int]] = defaultdict(list)  # pair, as key -> first cells
        cells, onward, back, total = self._cells, self._onward, self._back, 0
        for place in self._take(pair):
            second = place + onward[place]
            if cells[place] != left or second == place or cells[second] != right:
                continue
            weight, before, after = self._weights[place], place - back[place], second + onward[second]
            total += weight
            if before != place:
                changes[cells[before] << 32 | left] -= weight
                changes[cells[before] << 32 | piece] += weight
                new[cells[before] << 32 | piece].append(before)
            if after != second:
                changes[right << 32 | cells[after]] -= weight
                changes[piece << 32 | cells[after]] += weight
                new[piece << 32 | cells[after]].append(place)
                back[after] = after - place
            cells[place], cells[second] = piece, NOTHING
            onward[place] = after - place if after != second else 0
        changes[left << 32 | right] -= total
        for each, change in ((left, -total), (right, -total), (piece, total)):
            self._singles[each] += change
        self._count(changes, new)
        self._rate(np.array(self._of[left] + self._of[right] + self._of[piece]))

    def _count(self, changes: dict[int, int], new: dict[int, list[int]]) -> None:
        """Applies changes of counts, to new pairs as well."""
        numbers: dict[int, int] = {}
        for key, change in changes.items():
            numbers[key] = number = self._pairs.find_or_add(key)
            if number == len(self._last):  # a new pair
                self._last.append(NONE)
                self._of[key >> 32].append(number)
                self._of[key & 0xFFFFFFFF].append(number)
                if number == len(self._counts):
                    more = number // 2 + 1
                    self._counts, self._scores = np.pad(self._counts, (0, more)), np.pad(self._scores, (0, more))
            self._counts[number] += change
        for key, places in new.items():
            for place in places:
                self._record(numbers[key], place)

    def _record(self, pair: int, place: int) -> None:
        """Adds an occurrence of a pair, in a free entry if there is one."""
        if (entry := self._free) == NONE:
            entry = len(self._places)
            self._places.append(place)
            self._before.append(self._last[pair])
        else:
            self._free = self._before[entry]
            self._places[entry], self._before[entry] = place, self._last[pair]
        self._last[pair] = entry

    def _take(self, pair: int) -> list[int]:
        """The first cells of a pair's present and former occurrences, in order. Their entries become free."""
        found, entry = [], self._last[pair]
        while entry != NONE:
            found.append(self._places[entry])
            following, self._before[entry] = self._before[entry], self._free
            self._free, entry = entry, following
        self._last[pair] = NONE
        return sorted(found)

    def _joined(self, left: int, right: int) -> int:
        """The number of the piece that two neighbours form: a known one with this name, or a new one."""
        name = self._names[left] + self._names[right].removeprefix(self._mark)
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
            if number == len(self._singles):
                self._singles = np.pad(self._singles, (0, number))
        return number
