"""For all tests: one thread a process. Models here are tiny, and threads that wait for each other cost more."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
