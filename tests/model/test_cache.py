"""The cache against whole forward passes, where `truncate` takes back what was read."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.model import KVCache


@settings(max_examples=60, deadline=None)
@given(
    model_configs(max_seq_len=st.integers(4, 16), sliding_window=st.none() | st.integers(1, 6)),
    st.integers(0, 4),
    st.data(),
)
@torch.no_grad()
def test_what_was_taken_back_leaves_no_trace_also_where_a_window_had_moved_on(config, spare, data):
    """Other tokens are read, up to `spare` of them are taken back, and the right ones follow."""
    model, ids = random_model(config), random_ids(config, 2)
    context = config.max_seq_len
    cache, expected = KVCache(config, 2, spare=spare, dtype=torch.float64), model(ids)
    while (read := cache.lengths[0]) < context:
        right = data.draw(st.integers(0 if spare else 1, context - read), label="right")
        wrong = data.draw(st.integers(0, min(spare, context - read - right)), label="wrong")
        if not right and not wrong:
            right = 1
        others = (ids[:, read + right : read + right + wrong] + 1) % config.vocab_size
        logits = model(torch.cat((ids[:, read : read + right], others), dim=1), cache=cache)
        torch.testing.assert_close(logits[:, :right], expected[:, read : read + right], rtol=0.0, atol=1e-10)
        cache.truncate([read + right] * 2)
