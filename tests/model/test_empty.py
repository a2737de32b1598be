"""Models without weights."""

import subprocess
import sys

import pytest
import torch

from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights

SMALL = dict(vocab_size=7, d_model=8, num_layers=1, num_heads=2, max_seq_len=4, bias=True)


def test_shapes_and_types_match_a_model_with_weights():
    with without_weights():
        empty = TransformerLM(ModelConfig(**SMALL))
    full = TransformerLM(ModelConfig(**SMALL))
    described = [{name: (t.shape, t.dtype) for name, t in each.state_dict().items()} for each in (empty, full)]
    assert described[0] == described[1]
    assert all(weight.is_meta for weight in empty.parameters())
    assert torch.nn.init.zeros_(torch.ones(2)).tolist() == [0, 0]  # initialization works again outside


@pytest.mark.slow
def test_a_model_without_weights_does_not_import_pytorchs_compiler():
    code = f"""
import sys
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights
with without_weights():
    TransformerLM(ModelConfig(**{SMALL}))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
