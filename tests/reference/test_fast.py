"""`tinylm.reference.fast` equals the plain twin for any config; its memory is never shared by two arrays in use."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.test_against_torch import batches, twin_of
from tests.reference.test_gradients import numbers
from tests.strategies import model_configs, random_model
from tinylm.reference.fast import FastTransformerLM, cross_entropy, empty


@settings(max_examples=80, deadline=None)
@given(st.data(), model_configs(dropout=st.sampled_from([0.0, 0.3])), st.integers(1, 5))
def test_the_fast_network_equals_the_plain_one(data, config, threads):
    """Logits, evaluation, loss and gradients; with more threads than sequences, too; for any divisor."""
    plain = twin_of(random_model(config))
    fast = FastTransformerLM(plain.config, plain.parameters, threads=threads)
    inputs, targets, documents = data.draw(batches(config))
    assert np.abs(plain.logits(inputs, documents) - fast.logits(inputs, documents)).max() < 1e-12
    options = dict(documents=documents, num_targets=data.draw(st.sampled_from([None, 50])))
    one = plain.loss_and_grads(inputs, targets, dropout=np.random.default_rng(0), **options)
    other = fast.loss_and_grads(inputs, targets, dropout=np.random.default_rng(0), **options)
    assert abs(one[0] - other[0]) < 1e-12
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert np.abs(gradient - other[1][name]).max() < 1e-12 * max(1, np.abs(gradient).max())
    assert fast.evaluate(inputs, targets, documents) == pytest.approx(plain.evaluate(inputs, targets, documents))


def test_cross_entropy_by_blocks_of_rows_is_the_formula():
    """With more rows than one block holds."""
    x, weight, targets = numbers(300, 4), numbers(2000, 4), np.arange(300) * 6
    loss, dx, dweight = cross_entropy(x, weight, targets, 300)
    p = np.exp(x @ weight.T)
    p /= p.sum(axis=1, keepdims=True)
    right = p[np.arange(300), targets]
    dz = (p - (targets[:, None] == np.arange(2000))) / 300
    assert abs(loss + np.log(right).mean()) < 1e-12
    assert np.abs(dx - dz @ weight).max() < 1e-14
    assert np.abs(dweight - dz.T @ x).max() < 1e-14


# --- memory


def address(array):
    return array.__array_interface__["data"][0]


def test_the_memory_of_a_deleted_array_is_used_again():
    first = empty((10_007, 3), np.dtype(np.float32))
    earlier = address(first)
    del first
    second = empty((3, 10_000), np.dtype(np.int32))
    assert address(second) == earlier and second.shape == (3, 10_000) and second.flags.writeable


def test_a_view_keeps_its_memory():
    first = empty((30_011, 3), np.dtype(float))
    view = first[::2].T
    view[...] = 1.0
    del first
    second = empty((30_011, 3), np.dtype(float))
    second[...] = 2.0
    assert (view == 1.0).all()


def test_threads_never_share_memory():
    """Each thread fills arrays with its own number and must find nothing else in them."""
    wrong = []

    def work(number):
        for _ in range(300):
            array = empty((9_001,), np.dtype(float))
            array[...] = number
            if (array * 1.0 != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
