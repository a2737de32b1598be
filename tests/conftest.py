"""For all tests: one thread a process, and the same random cases in every run.

Models here are tiny, and threads that wait for each other cost more. `--hypothesis-profile=fresh` draws new cases in
each run; a failure prints the `@reproduce_failure` line that draws its case again.
"""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, database=None, print_blob=True)
settings.load_profile("same")  # `--hypothesis-profile` comes later
