"""The order of a mixture: exact shares, each source its own sequence, at any step, batch size and number of ranks."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.data.batches import TrainingWindows
from tinylm.data.mixture import UNIT, MixtureOrder, samples_before, source_seed

few = settings(max_examples=60, deadline=None)
weights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


@few
@given(weights, st.integers(0, 2**45))
@example([0.7, 0.3], 0)
@example([1e-6, 1e6], UNIT)
def test_each_source_has_its_share_of_any_number_of_samples_to_within_rounding(weights, first):
    exact = [Fraction(each) for each in weights]
    samples = np.arange(first, first + 40)
    counts = samples_before(samples, exact)
    assert (counts.sum(axis=1) == samples).all()
    rounding = Fraction(math.ceil(math.log2(len(weights))), 2)
    for number, row in zip(samples.tolist(), counts.tolist(), strict=True):
        for count, weight in zip(row, exact, strict=True):
            precision = Fraction(4 * number, UNIT)  # of the shares themselves
            assert abs(count - number * weight / sum(exact)) <= rounding + precision


@few
@given(weights, st.integers(0, 2**45))
def test_each_sample_is_the_next_one_of_exactly_one_source(weights, first):
    counts = samples_before(np.arange(first, first + 200), [Fraction(each) for each in weights])
    gained = np.diff(counts, axis=0)
    assert set(np.unique(gained)) <= {0, 1}
    assert (gained.sum(axis=1) == 1).all()


def test_shares_by_hand():
    quarters = samples_before(np.arange(9), [Fraction(3), Fraction(1)])
    assert quarters[:, 0].tolist() == [0, 1, 2, 2, 3, 4, 5, 5, 6]  # 3 n / 4, halves rounded up
    assert quarters[:, 1].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_source_of_the_smallest_weight_is_not_left_out():
    counts = samples_before(np.array([0, UNIT]), [Fraction(1e-300), Fraction(1)])
    assert counts.tolist() == [[0, 0], [1, UNIT - 1]]


def order(batch_size: int, seed: int = 5) -> MixtureOrder:
    sizes = {"web": 1000, "books": 77, "code": 300}
    orders = {name: TrainingWindows(size, 8, batch_size, source_seed(seed, name)) for name, size in sizes.items()}
    return MixtureOrder(orders, {"web": 0.6, "books": 0.3, "code": 0.1}, batch_size)


@few
@given(st.integers(1, 40), st.integers(0, 400))
def test_samples_of_a_source_are_its_own_sequence_whatever_the_batch_size_and_the_first_step(batch_size, first):
    mixture = order(batch_size)
    steps = [mixture.starts(step) for step in range(first, first + 5)]
    sources, starts = (np.concatenate(each) for each in zip(*steps, strict=True))
    single = [order(1).starts(sample) for sample in range(first * batch_size, (first + 5) * batch_size)]
    assert sources.tolist() == [each[0][0] for each in single]
    assert starts.tolist() == [each[1][0] for each in single]
    before = dict(
        zip(
            mixture.names,
            samples_before(np.array([first * batch_size]), [Fraction(mixture.weights[name]) for name in mixture.names])[
                0
            ].tolist(),
            strict=True,
        )
    )
    for number, name in enumerate(mixture.names):
        there = starts[sources == number]
        own = mixture.orders[name].sample_starts(before[name] + np.arange(len(there)))
        assert there.tolist() == own.tolist()


def test_every_batch_has_its_share_of_each_source():
    mixture = order(batch_size=20)
    assert mixture.names == ["books", "code", "web"]
    for step in (0, 1, 17, 10**9):
        sources, _ = mixture.samples(step)
        assert np.abs(np.bincount(sources, minlength=3) - [6, 2, 12]).max() <= 2


def test_the_order_of_the_names_in_the_config_does_not_matter():
    mixture = order(8)
    other = MixtureOrder(
        dict(reversed(mixture.orders.items())), dict(reversed(mixture.weights.items())), mixture.batch_size
    )
    for step in range(20):
        assert [each.tolist() for each in mixture.starts(step)] == [each.tolist() for each in other.starts(step)]


def test_sources_of_equal_size_are_shuffled_differently():
    orders = {name: TrainingWindows(800, 8, 4, source_seed(0, name)) for name in ("a", "b")}
    a, b = (order.sample_starts(np.arange(100)).tolist() for order in orders.values())
    assert a != b


def test_epochs_of_each_source_by_hand():
    orders = {name: TrainingWindows(size, 8, 10, 0) for name, size in (("a", 801), ("b", 81))}
    assert {name: each.num_windows for name, each in orders.items()} == {"a": 101, "b": 11}
    mixture = MixtureOrder(orders, {"a": 3.0, "b": 1.0}, batch_size=10)
    found = mixture.epochs(steps=40)  # 400 samples: 300 and 100
    assert found == {"a": pytest.approx(300 / 101), "b": pytest.approx(100 / 11)}
    assert mixture.steps_per_epoch == 11
