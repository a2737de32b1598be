"""Freed memory is kept: pages that a process has had once are not filled with zeros again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
from tinylm.kernels.heap import MMAP_THRESHOLD, keep_freed_memory
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no pages of 2 MB
libc.mallopt(MMAP_THRESHOLD, 131_072)  # all that is freed is given back; by default it depends on what lies above
if "keep" in sys.argv:
    keep_freed_memory()

def step():
    tensors = [torch.ones(2_000_000) for _ in range(5)]  # 8 MB each, of 1,954 pages

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(*arguments: str, **settings: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, env=plain | settings, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other settings")
def test_a_step_gets_the_pages_of_the_step_before_unless_the_user_has_set_otherwise():
    """Ten steps of five tensors: at most 97,700 new pages; none, but for those of Python's own objects, if kept."""
    assert new_pages("keep") < 500
    assert new_pages() > 90_000
    assert new_pages("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 90_000
    assert new_pages("keep", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072") > 90_000
