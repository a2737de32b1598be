"""map_in_order returns the results of `map` in order, and raises the exceptions of its helpers."""

import operator
import os
import subprocess
import sys
from itertools import count, islice

import pytest

from tinylm import workers
from tinylm.errors import ConfigError, DataError, TinyLMError
from tinylm.tokenizer import CharTokenizer
from tinylm.tokenizer.fast.blocks import Block
from tinylm.workers import map_in_order, num_cores


@pytest.fixture(autouse=True)
def one_value_while_starting(monkeypatch):
    monkeypatch.setattr(workers, "WHILE_STARTING", 1)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 20])
def test_results_equal_those_of_map(processes, length):
    values = [-value for value in range(length)]
    assert list(map_in_order(abs, values, processes)) == list(range(length))


def test_helpers_do_the_work_after_the_first_values():
    ids = list(map_in_order(operator.methodcaller("__call__"), [os.getpid] * 40, 2))
    assert ids[:2] == [os.getpid()] * 2
    assert os.getpid() not in ids[2:] and len(set(ids[2:])) <= 2


def test_values_are_consumed_lazily():
    taken = []
    values = (taken.append(value) or value for value in count())
    assert list(islice(map_in_order(abs, values, 2), 5)) == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2 * 2 + 1


def test_a_tinylm_error_in_a_helper_is_raised_unchanged():
    encode = CharTokenizer("a").encode_packed
    blocks = [Block(["a"])] * 5 + [Block(["ab"], start=10)]
    with pytest.raises(DataError, match=r"character 'b' \(U\+0062\) at position 11"):
        list(map_in_order(encode, blocks, 2))


def test_a_dead_helper_is_an_error_with_its_exit_code():
    results = map_in_order(eval, ["1", "2", "3", "__import__('os')._exit(3)"], 2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(TinyLMError, match=r"a helper process died \(exit code 3\).*try processes=1"):
        list(results)


@pytest.mark.parametrize("processes", [0, -1])
def test_fewer_than_one_process_is_refused(processes):
    with pytest.raises(ConfigError, match=f"processes must be at least 1, got {processes}"):
        list(map_in_order(abs, [1], processes))


def test_none_means_one_helper_per_core():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    assert list(map_in_order(abs, range(-6, 0), None)) == [6, 5, 4, 3, 2, 1]


def test_helpers_import_neither_torch_nor_the_callers_main_module(tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "from tinylm import workers\n"
        "from tinylm.tokenizer import ByteTokenizer\n"
        "print('once')\n"  # without `if __name__ == '__main__'`
        'print(list(workers.map_in_order(eval, [\'"torch" in __import__("sys").modules\'] * 5, 2)))\n'
    )
    run = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=60)
    assert run.stdout == "once\n[False, False, False, False, False]\n", run.stderr


def test_no_helper_survives_when_the_caller_stops_early():
    results = map_in_order(operator.methodcaller("__call__"), [os.getpid] * 10, 2)
    helper = list(islice(results, 4))[-1]
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)
