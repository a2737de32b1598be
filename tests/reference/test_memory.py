"""Memory is used again when nobody refers to it, and never before."""

import threading

import numpy as np

from tinylm.reference.memory import empty


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_of_a_dead_array_serves_the_next_of_about_its_size():
    first = empty((10_007, 3), np.dtype(np.float32))
    where = address(first)
    del first
    second = empty((3, 10_000), np.dtype(np.int32))
    assert address(second) == where and second.shape == (3, 10_000) and second.flags.writeable


def test_a_view_keeps_its_memory():
    first = empty((30_011, 3), np.dtype(float))
    view = first[::2].T
    view[...] = 1.0
    del first
    second = empty((30_011, 3), np.dtype(float))
    second[...] = 2.0
    assert (view == 1.0).all()


def test_threads_never_share_memory():
    """Each fills arrays with its own number and finds nothing else in them."""
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
