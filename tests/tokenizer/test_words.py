"""KeyTable, Ragged, WordTable and the word counters against Python's dict, lists and Counter."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer.fast import words as words_module
from tinylm.tokenizer.fast.arrays import MULTIPLIER, KeyTable, Ragged, slices
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.words import BlockCounter, WordCounter, WordTable

few = settings(max_examples=100, deadline=None)
keys = st.one_of(st.integers(0, 30), st.integers(0, 2**64 - 2))


# --- arrays


@few
@given(st.lists(st.lists(keys, max_size=30), max_size=5))
def test_each_key_has_its_own_number(lists):
    table, numbers = KeyTable(), {}
    for part in lists:
        array = np.array(part, dtype=np.uint64)
        assert [numbers.get(key, -1) for key in part] == table.find(array).tolist()
        for key, number in zip(part, table.find_or_add(array).tolist(), strict=True):
            assert numbers.setdefault(key, number) == number
    assert sorted(numbers.values()) == list(range(table.size))


def test_colliding_keys_are_distinguished():
    inverse = pow(int(MULTIPLIER), -1, 2**64)
    colliding = np.array([number * inverse % 2**64 for number in range(2000)], dtype=np.uint64)  # all hash to slot 0
    table = KeyTable()
    table.add(colliding[:1000])
    assert table.find(colliding[:1000]).tolist() == list(range(1000))
    assert (table.find(colliding[1000:]) == -1).all()


def test_a_growing_table_keeps_its_numbers():
    table, every = KeyTable(), np.arange(100_000, dtype=np.uint64) * np.uint64(977)
    for part in np.array_split(every, 7):
        table.add(part)
    assert table.find(every).tolist() == list(range(100_000))
    assert (table.find(every + np.uint64(1)) == -1).all()


@few
@given(st.lists(st.lists(st.integers(-9, 9), max_size=5), min_size=1, max_size=40), st.data())
def test_ragged_lists_are_returned_unchanged(lists, data):
    ragged = Ragged(np.int32)
    ragged.reserve(len(lists))
    numbers = np.array(data.draw(st.permutations(range(len(lists)))))
    half = len(lists) // 2
    for part in (numbers[:half], numbers[half:]):
        values = np.array([value for number in part for value in lists[number]], dtype=np.int32)
        ragged.put(part, values, np.array([len(lists[number]) for number in part], dtype=np.int64))
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9))
    assert ragged.take(np.array(chosen, dtype=np.int64)).tolist() == [v for n in chosen for v in lists[n]]
    assert ragged.sizes(np.array(chosen, dtype=np.int64)).tolist() == [len(lists[n]) for n in chosen]


def test_slices_by_hand():
    assert slices(np.arange(10), np.array([3, 0, 8]), np.array([2, 0, 1])).tolist() == [3, 4, 8]


# --- words

# words that share pieces of seven bytes, contain NULs, or are longer than SPELLED
pieces = st.sampled_from([b"", b"a", b"a\0", b"\0", b"1234567", b"12345678", b"abcdefg", b"x" * 60])
words = st.lists(pieces, min_size=1, max_size=5).map(b"".join).filter(bool)


def cut(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(part) for part in parts])
    return np.frombuffer(b"".join(parts), dtype=np.uint8), np.cumsum(lengths) - lengths


@few
@given(st.lists(st.lists(words, min_size=1, max_size=20), min_size=1, max_size=3))
@example([[b"1234567", b"12345671234567", b"1234567\0", b"1234567a", b"x" * 56, b"x" * 57, b"x" * 63]])
def test_words_have_equal_numbers_if_and_only_if_they_are_equal(texts):
    table, numbers = WordTable(np.int32), {}
    for parts in texts:
        for word, number in zip(parts, table.numbers(*cut(parts)).tolist(), strict=True):
            assert numbers.setdefault(word, number) == number
    assert len(set(numbers.values())) == len(numbers)
    assert max(numbers.values()) < table.size


@few
@given(st.lists(st.lists(words, min_size=1, max_size=20), min_size=1, max_size=3))
def test_counts_equal_those_of_a_counter(texts):
    counter = WordCounter()
    for parts in texts:
        counter.add(*cut(parts))
    data, sizes, counts = counter.take()
    bounds = [0, *np.cumsum(sizes).tolist()]
    found = dict(zip([data[a:b].tobytes() for a, b in pairwise(bounds)], counts.tolist(), strict=True))
    assert found == Counter(word for parts in texts for word in parts)
    assert all(len(part) == 0 for part in counter.take())


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_a_block_counter_counts_the_words_of_each_block_also_after_forgetting(limit, monkeypatch):
    monkeypatch.setattr(words_module, "MAX_KNOWN", limit)
    count, total = BlockCounter("gpt2"), WordCounter()
    for texts in (["a b", "a"], ["b", "", "a cat"], ["a cat"]):
        num_bytes, data, starts, counts = count(Block(texts))
        assert num_bytes == len("|".join(texts))
        total.add(data, starts, counts)
    data, sizes, counts = total.take()
    bounds = [0, *np.cumsum(sizes).tolist()]
    found = dict(zip([data[a:b].tobytes() for a, b in pairwise(bounds)], counts.tolist(), strict=True))
    assert found == {b"a": 4, b" b": 1, b"b": 1, b" cat": 2}


@pytest.mark.parametrize("most", [1, 3, 10])
def test_beyond_the_maximum_the_rarest_words_are_forgotten(most):
    counter = WordCounter(most)
    parts = [b"often"] * 50 + [b"rare%d" % number for number in range(20)]
    for _ in range(3):
        counter.add(*cut(parts))
    data, sizes, counts = counter.take()
    assert len(counts) <= most
    assert counter.size <= most
    assert int(counts.sum()) + counter.forgotten == 3 * len(parts)
    top = int(np.argmax(counts))
    begin = int(sizes[:top].sum())
    assert data[begin : begin + sizes[top]].tobytes() == b"often" and counts[top] == 150
