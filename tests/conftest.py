"""Settings for all tests: one thread per process, and the same random cases in every run.

The models are so tiny that several threads would only slow each other down. `--hypothesis-profile=fresh` draws new
cases in each run; a failure prints the `@reproduce_failure` line that reproduces it.
"""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; inherited by the processes that tests start

settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, database=None, print_blob=True)
settings.load_profile("same")  # `--hypothesis-profile` overrides it
