"""The memory that this process has freed: it keeps it, instead of giving it back to the system.

The C library returns large blocks to the system as soon as they are free. A training step on a processor allocates the
same blocks again and again, and the system must fill each with zeros, page by page: 5 to 10% of a step's time.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # glibc's names for the options of mallopt


def keep_freed_memory(size: int = 1 << 30) -> None:
    """Tells glibc to keep up to `size` bytes of freed memory in the process; does nothing with other C libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return
    for option, value in ((TRIM_THRESHOLD, size), (MMAP_THRESHOLD, size), (ARENA_MAX, 1)):
        mallopt(option, value)
