"""Memory that the process has freed and keeps, instead of giving it back to the system.

The C library returns large blocks as soon as they are free. A training step on a processor allocates the same blocks
again and again, and the system fills each with zeros, page by page: up to a fifth of its time (docs/speed-cpu.md).
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # glibc's numbers for the settings of mallopt


def keep_freed_memory(size: int = 1 << 30) -> None:
    """Tells glibc to keep up to `size` bytes of freed memory; does nothing with other C libraries.

    Settings of the user's own, by the environment variables of glibc, stay.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return
    for setting, value in ((TRIM_THRESHOLD, size), (MMAP_THRESHOLD, size), (ARENA_MAX, 1)):
        mallopt(setting, value)
