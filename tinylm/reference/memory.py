"""Arrays whose memory is used again.

A training step makes the same arrays every time. To ask the operating system for megabytes, which it hands over filled
with zeros page by page, costs about as much as to write them; so memory that no array refers to any more is kept here
for the next array of its size.
"""

import math
import weakref
from collections import defaultdict

import numpy as np

_free: dict[int, list[np.ndarray]] = defaultdict(list)  # by size in bytes


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`: an array of any content. When it and all its views are gone, its memory is free again."""
    size = math.prod(shape) * dtype.itemsize
    free = _free[size]
    try:
        memory = free.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    owner = np.frombuffer(memory.data, dtype)  # not memory's own view, so that what is made of it refers to it alone
    weakref.finalize(owner, free.append, memory).atexit = False
    return owner.reshape(shape)
