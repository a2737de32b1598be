"""The order by shard depends on nothing but the seed and the shards up to the current one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.data.shard_order import ShardOrder
from tinylm.errors import DataError

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda lengths: max(lengths) > 8)


def order_of(lengths, context=8, batch_size=3, seed=1) -> ShardOrder:
    return ShardOrder(lambda number: lengths[number] if number < len(lengths) else None, context, batch_size, seed)


def epoch_of(order: ShardOrder) -> int:
    return order.known(1 << 60)


@given(LENGTHS, st.integers(1, 8), st.integers(0, 3))
def test_in_every_epoch_each_token_but_the_first_of_its_shard_is_a_target(lengths, context, epoch):
    order = order_of(lengths, context, 1)
    size = epoch_of(order)
    targets = set()
    for step in range(epoch * size, (epoch + 1) * size):
        (number,), (start,) = order.windows(step)
        assert 0 <= start <= lengths[number] - 1 - context  # within the shard
        targets |= {(int(number), int(start) + 1 + i) for i in range(context)}
    expected = {(k, i) for k, length in enumerate(lengths) if length > context for i in range(1, length)}
    assert targets == expected


@given(LENGTHS, st.integers(1, 7), st.integers(0, 20))
def test_batches_are_consecutive_samples_whatever_their_size(lengths, batch_size, step):
    one, many = order_of(lengths, batch_size=1), order_of(lengths, batch_size=batch_size)
    alone = [one.windows(sample) for sample in range(step * batch_size, (step + 1) * batch_size)]
    shards, starts = many.windows(step)
    assert shards.tolist() == [int(number[0]) for number, _ in alone]
    assert starts.tolist() == [int(start[0]) for _, start in alone]


def test_the_first_epoch_asks_for_no_shard_before_it_is_needed():
    asked = []

    def length(number):
        asked.append(number)
        return 8 * 4 + 1

    order = ShardOrder(length, context=8, batch_size=4, seed=0)  # shards of 4 windows, or 5 with a shifted grid
    per_shard = order.known(1)
    assert asked == [0]
    seen = [set(order.windows(step)[0].tolist()) for step in range(10)]
    assert max(asked) == (10 * 4 - 1) // per_shard
    assert [number for step in seen for number in sorted(step)] == sorted(n for step in seen for n in step)


def test_later_epochs_permute_shards_and_windows():
    order = order_of([200] * 8, batch_size=1)
    size = epoch_of(order)
    epochs = []
    for epoch in range(3):
        found = [order.windows(step) for step in range(epoch * size, (epoch + 1) * size)]
        epochs.append([(int(number[0]), int(start[0])) for number, start in found])
    shards = [list(dict.fromkeys(number for number, _ in each)) for each in epochs]
    assert shards[0] == list(range(8))
    assert sorted(shards[1]) == sorted(shards[2]) == list(range(8))
    assert len({tuple(each) for each in shards}) == 3
    within = [[start for number, start in each if number == 3] for each in epochs]
    assert within[0] != within[1]
    other = [start for number, start in epochs[0] if number == 4]
    assert within[0] != other  # equal lengths, other permutations


def test_shards_without_a_window_are_passed_over_and_all_of_them_refused():
    assert set(order_of([3, 50, 0, 50]).windows(1)[0].tolist()) <= {1, 3}
    with pytest.raises(DataError, match=r"no shard has more than the 8 tokens of max_seq_len"):
        order_of([3, 8]).windows(0)


def test_the_seed_changes_the_order():
    lengths = [100, 100]
    first, second = (order_of(lengths, seed=seed).windows(0)[1] for seed in (1, 2))
    assert not np.array_equal(first, second)
