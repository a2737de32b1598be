"""Settings for all tests: one thread per process, and the same random cases in every run.

The models are so tiny that several threads would only slow each other down. `--hypothesis-profile=fresh` draws new
cases in each run; a failure prints the `@reproduce_failure` line that reproduces it.
"""

import os

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; inherited by the processes that tests start

settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, database=None, print_blob=True)
settings.load_profile("same")  # `--hypothesis-profile` overrides it


@pytest.fixture(autouse=True)
def no_seed_of_another_test():
    """Removes what `seed_everything` leaves in the environment, from which a TextDataModule takes its seed."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
