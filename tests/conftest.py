"""Settings for all tests: one thread per process, and the same random cases in every run.

The models are so tiny that several threads would only slow each other down. `--hypothesis-profile=fresh` draws new
cases in each run; a failure prints the `@reproduce_failure` line that reproduces it.
"""

import gc
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; inherited by the processes that tests start
os.environ["OMP_WAIT_POLICY"] = "passive"  # where a test has two threads, they wait without using the processor
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # or PyTorch compiles six programs to see whether its compiler works

from tests import processes, shortcuts  # noqa: F401
from tinylm import plugins
from tinylm.model.size import empty_model
from tinylm.workers import num_cores

settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, database=None, print_blob=True)
settings.load_profile("same")  # `--hypothesis-profile` overrides it


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Number of processes of `-n auto`, which pyproject.toml sets: one per core.

    Unless the command line has -n too, tests of named files run in this process: workers take seconds to start.
    """
    asked = any(word.startswith(("-n", "--numprocesses")) for word in config.invocation_params.args)
    named = all(".py" in word for word in config.args)
    return 0 if named and not asked else min(num_cores(), 8)


def pytest_collectstart() -> None:
    """Searches for no garbage while modules are imported, when hardly any is made."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leaves modules and tests out of the search for garbage, which takes half a second otherwise."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)  # after the choice of tests by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first in each worker's share, so that no worker starts a long test when others end.

    pytest-xdist gives each worker an equal, contiguous share; a worker that has finished takes over the end of another.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [each for each in files.values() if any(item.get_closest_marker("slow") for item in each)]
    fast = [item for each in files.values() if each not in slow for item in each]
    number, count = len(items), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items.clear()
    for worker in range(count):
        items += (item for each in slow[worker::count] for item in each)
        room = max(0, number * (worker + 1) // count - len(items))
        items += fast[:room]
        fast = fast[room:]


@pytest.fixture(autouse=True)
def no_run_of_another_test():
    """Removes what a command leaves in this process: its seed, folder and theme, and its group of processes."""
    with processes.left_group():
        yield
    for name in ("PL_GLOBAL_SEED", "TINYLM_RUN_FOLDER", "TINYLM_THEME"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def trust_of_a_test() -> Iterator[None]:
    """Forgets the modules that a test has trusted; `--trust-code` trusts them all, for the whole process."""
    trusted, given = {*plugins._trusted}, {**plugins.Part._given}
    yield
    plugins._trusted, plugins.Part._given = trusted, given


@pytest.fixture
def own_parts(tmp_path, monkeypatch) -> Path:
    """The working folder, with tests/own_parts.py in it, which is neither imported nor trusted yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_trusted", set())
    monkeypatch.setattr(plugins.Part, "_given", {})
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    shutil.copy(Path(__file__).parent / "own_parts.py", tmp_path / "own_parts.py")
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("own_parts", None)
    empty_model.cache_clear()  # models of the module's classes
