"""Arrays whose memory is used again.

A training step makes the same arrays every time. To ask the operating system for megabytes, which it hands over filled
with zeros page by page, costs about as much as to write them; so memory that no array refers to any more is kept here
for the next array of about its size. The rest of the code says `empty` for `np.empty` and need not know.
"""

import math
import weakref
from collections import defaultdict

import numpy as np

LARGE = 1 << 16  # bytes; less than that costs nothing
_free: dict[int, list[np.ndarray]] = defaultdict(list)  # by size in bytes, a power of two


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`: an array of any content. When it and all its views are gone, its memory is free again."""
    count = math.prod(shape)
    size = 1 << (count * dtype.itemsize - 1).bit_length()  # few sizes, so that little lies idle
    if size < LARGE:
        return np.empty(shape, dtype)
    free = _free[size]
    try:  # not `if free`: another thread may take the last one
        memory = free.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    # By way of a buffer, since the view of a view refers to whatever owns the memory: that is now `owner`.
    owner = np.frombuffer(memory.data, dtype, count)
    weakref.finalize(owner, free.append, memory).atexit = False
    return owner.reshape(shape)
