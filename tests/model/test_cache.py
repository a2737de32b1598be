"""Key/value caches against full forward passes: truncation, gradients, and the 8-bit cache."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import Int8KVCache, ModelConfig, RingKVCache, TransformerLM


@settings(max_examples=60, deadline=None)
@given(
    model_configs(max_seq_len=st.integers(4, 16), sliding_window=st.none() | st.integers(1, 6)),
    st.integers(0, 4),
    st.data(),
)
@torch.no_grad()
def test_truncated_tokens_leave_no_trace_even_after_a_window_moved(config, spare, data):
    """Reads up to `spare` wrong tokens, truncates them, and continues with the right ones."""
    model, ids = random_model(config), random_ids(config, 2)
    context = config.max_seq_len
    cache, expected = RingKVCache(config, 2, spare=spare, dtype=torch.float64), model(ids)
    while (read := cache.lengths[0]) < context:
        right = data.draw(st.integers(0 if spare else 1, context - read), label="right")
        wrong = data.draw(st.integers(0, min(spare, context - read - right)), label="wrong")
        if not right and not wrong:
            right = 1
        wrong_ids = (ids[:, read + right : read + right + wrong] + 1) % config.vocab_size
        logits = model(torch.cat((ids[:, read : read + right], wrong_ids), dim=1), cache=cache)
        torch.testing.assert_close(logits[:, :right], expected[:, read : read + right], rtol=0.0, atol=1e-10)
        cache.truncate([read + right] * 2)


@settings(max_examples=30, deadline=None)
@given(model_configs())
def test_gradients_reach_the_tokens_being_read(config):
    model, ids = random_model(config), random_ids(config, 2)
    found = []
    for cache in (None, RingKVCache(config, 2, dtype=torch.float64)):
        model.zero_grad()
        model(ids, cache=cache).square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-8)


# --- the 8-bit cache


def rounded(vectors: torch.Tensor) -> torch.Tensor:
    """Rounds each vector of the last axis to 255 levels between plus and minus its largest coordinate."""
    levels = vectors / vectors.abs().amax(dim=-1, keepdim=True) * 127
    return levels.round() / 127 * vectors.abs().amax(dim=-1, keepdim=True)


def with_rounded_keys(model: TransformerLM) -> TransformerLM:
    """The model, changed to round keys and values before attention: the oracle of `Int8KVCache`."""
    for block in model.blocks:
        attend = block.attention.attend
        block.attention.attend = lambda q, k, v, *more, attend=attend: attend(q, rounded(k), rounded(v), *more)
    return model


@settings(max_examples=60, deadline=None)
@given(
    model_configs(max_seq_len=st.integers(4, 16), sliding_window=st.none() | st.integers(1, 6)),
    st.integers(1, 6),
    st.booleans(),
)
@torch.no_grad()
def test_int8_cache_equals_rounded_keys_and_values(config, first, by_decoder):
    model, ids = random_model(config), random_ids(config, 2)
    model.cache_type = Int8KVCache
    expected, cache = with_rounded_keys(random_model(config))(ids), model.make_cache(2)
    decoder = Decoder(model)
    model(ids[:, :first], cache=cache)
    for t in range(first, ids.shape[1]):
        logits = decoder.step(ids[:, t], cache) if by_decoder else model(ids[:, t : t + 1], cache=cache)[:, 0]
        torch.testing.assert_close(logits, expected[:, t], rtol=0.0, atol=1e-10)


def test_int8_cache_needs_a_quarter_of_the_memory_plus_scales():
    model = random_model(ModelConfig(vocab_size=9, d_model=64, num_heads=2), dtype=torch.float32)
    plain, small = model.make_cache(1).num_bytes, Int8KVCache(model.config, 1).num_bytes
    assert small == plain / 4 + plain / 32  # a 4-byte scale for 32 numbers of 4 bytes


@torch.no_grad()
def test_int8_cache_rounds_to_half_a_step_and_keeps_zeros():
    config = ModelConfig(vocab_size=9, d_model=64, num_heads=2, num_layers=1, max_seq_len=8)
    cache = Int8KVCache(config, 1)
    keys = torch.randn(1, 2, 5, 32, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-2.0, 3)[:, None]
    cache.reserve(5)
    found, zeros = cache.append(0, keys, torch.zeros_like(keys))
    assert ((found - keys).abs() <= keys.abs().amax(dim=-1, keepdim=True) / 254 * 1.0001).all()
    assert not zeros.any()
