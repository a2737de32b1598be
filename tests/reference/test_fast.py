"""`tinylm.reference.fast` equals the plain twin for any config."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.test_against_torch import batches, twin_of
from tests.strategies import model_configs, random_model
from tinylm.reference import fast
from tinylm.reference.fast import FastTransformerLM


@settings(max_examples=80, deadline=None)
@given(st.data(), model_configs(dropout=st.sampled_from([0.0, 0.3])), st.integers(1, 5), st.sampled_from([1, 512]))
def test_the_fast_network_equals_the_plain_one(data, config, threads, tokens):
    """Logits, evaluation, loss and gradients; with more threads than sequences, too; for any divisor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "TOKENS", tokens)
        check(data, config, threads)


def check(data, config, threads):
    plain = twin_of(random_model(config))
    tuned = FastTransformerLM(plain.config, plain.parameters, threads=threads)
    inputs, targets, documents = data.draw(batches(config))
    assert np.abs(plain.logits(inputs, documents) - tuned.logits(inputs, documents)).max() < 1e-12
    options = dict(documents=documents, num_targets=data.draw(st.sampled_from([None, 50])))
    one = plain.loss_and_grads(inputs, targets, dropout=np.random.default_rng(0), **options)
    other = tuned.loss_and_grads(inputs, targets, dropout=np.random.default_rng(0), **options)
    assert abs(one[0] - other[0]) < 1e-12
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert np.abs(gradient - other[1][name]).max() < 1e-12 * max(1, np.abs(gradient).max())
    assert tuned.evaluate(inputs, targets, documents) == pytest.approx(plain.evaluate(inputs, targets, documents))
