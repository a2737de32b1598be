"""A forward pass executes few distinct lines, functions and files of tinylm, so that it can be read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tinylm
from tinylm.generation import textbook
from tinylm.model import TransformerLM, preset
from tinylm.reference import Config, NumpyTransformerLM

PACKAGE = str(Path(tinylm.__file__).parent)
TINY = dict(d_model=32, num_layers=2, num_heads=4)


def code_executed(call) -> tuple[int, int, int]:
    """Lines, functions and files of the package that a call executes, each counted once."""
    lines, functions = set(), set()

    def trace(frame, event, argument):
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        functions.add(code)
        if event == "line":
            lines.add((code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return len(lines), len(functions), len({code.co_filename for code in functions})


def network(name: str) -> TransformerLM:
    return TransformerLM(preset(name, vocab_size=65, **TINY)).eval()


@pytest.mark.parametrize(("name", "most"), [("gpt2", (45, 10, 4)), ("small", (60, 12, 5))])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_forward_pass_is_short(name, most, gradients):
    model = network(name)
    with torch.set_grad_enabled(gradients):
        found = code_executed(lambda: model(torch.zeros(1, 8, dtype=torch.long)))
    print(name, found)
    assert all(count <= limit for count, limit in zip(found, most, strict=True)), found


def test_a_forward_pass_of_the_numpy_twin_is_short():
    twin = NumpyTransformerLM(Config.from_dict(preset("small", vocab_size=65, **TINY).to_dict()))
    found = code_executed(lambda: twin.logits(np.zeros((1, 8), dtype=np.int64)))
    print("twin", found)
    assert all(count <= limit for count, limit in zip(found, (90, 20, 6), strict=True)), found


@pytest.mark.parametrize("name", ["gpt2", "small"])
def test_generating_a_text_with_the_textbook_loop_is_short(name):
    model = network(name)
    lines, *_ = code_executed(lambda: list(textbook.generate(model, [1, 2, 3], max_new_tokens=5)))
    print(name, lines)
    assert lines <= 70
