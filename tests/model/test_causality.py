"""Logits depend on earlier tokens of the same document only, and not on how the text was split for a cache.

Checked for random configs.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, RingKVCache, TransformerLM, parameter_count

few = settings(max_examples=40, deadline=None)
EXACT = dict(rtol=0.0, atol=1e-10)  # for float64
lengths = st.integers(2, 12)
relative = st.sampled_from(["rotary", "none"])  # encodings that are invariant to a shift of the document
packed_configs = model_configs(
    positional_encoding=relative, document_mask=st.just(True), max_seq_len=st.integers(4, 12)
)


def with_changed_token(ids, column, vocab_size):
    ids = ids.clone()
    ids[:, column] = (ids[:, column] + 1) % vocab_size
    return ids


def partition(data, total):
    """Draws chunk lengths with the sum `total`, many of them 1, as in decoding."""
    chunks = []
    while (left := total - sum(chunks)) > 0:
        chunks.append(data.draw(st.just(1) | st.integers(1, left)))
    return chunks


def decode(model, ids, chunks, cache):
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    return torch.cat(parts, dim=1)


def loss_and_gradients(model, ids):
    torch.manual_seed(0)  # dropout
    model.train().zero_grad()
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@few
@given(model_configs(max_seq_len=lengths), st.data())
@torch.no_grad()
def test_a_token_never_changes_earlier_logits(config, data):
    """Bit for bit."""
    model, ids = random_model(config, dtype=torch.float32), random_ids(config)
    t = data.draw(st.integers(0, config.max_seq_len - 1))
    changed = model(with_changed_token(ids, t, config.vocab_size))
    assert torch.equal(model(ids)[:, :t], changed[:, :t])


@few
@given(model_configs(max_seq_len=lengths, num_layers=st.integers(1, 2), sliding_window=st.integers(1, 5)))
@torch.no_grad()
def test_a_token_reaches_one_window_per_layer_and_no_further(config):
    """Each layer carries information window - 1 positions ahead. Beyond that, logits are equal bit for bit."""
    model, ids = random_model(config, dtype=torch.float32), random_ids(config)
    reach = sum((config.window(kind) or config.max_seq_len + 1) - 1 for kind in config.layer_kinds)
    changed = model(with_changed_token(ids, 0, config.vocab_size))
    assert torch.equal(model(ids)[:, reach + 1 :], changed[:, reach + 1 :])


@pytest.mark.parametrize(("window", "reach"), [(None, 11), (1, 0), (3, 4)])
@torch.no_grad()
def test_a_token_changes_the_logits_of_every_position_within_reach(window, reach):
    """The converse: a mask that hid too much would pass the two tests above."""
    config = ModelConfig(vocab_size=9, d_model=16, num_layers=2, max_seq_len=12, sliding_window=window)
    model, ids = random_model(config), random_ids(config)
    change = (model(ids) - model(with_changed_token(ids, 0, 9))).abs().amax(dim=-1)  # (B, T)
    assert (change[:, : reach + 1] > 1e-6).all()
    assert (change[:, reach + 1 :] == 0).all()


@few
@given(packed_configs, st.data())
@torch.no_grad()
def test_packed_documents_have_the_logits_of_separate_documents(config, data):
    model, ids = random_model(config), random_ids(config, batch_size=1)
    lengths = partition(data, config.max_seq_len)
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    separate = torch.cat([model(document) for document in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(model(ids, documents=documents), separate, **EXACT)


@few
@given(packed_configs, st.data())
@torch.no_grad()
def test_a_token_never_changes_the_logits_of_another_document(config, data):
    """Bit for bit, with documents that begin at different positions in each row."""
    model, ids = random_model(config, dtype=torch.float32), random_ids(config)
    T = config.max_seq_len
    cuts = torch.tensor([[data.draw(st.integers(1, T - 1))], [data.draw(st.integers(1, T - 1))]])
    second = torch.arange(T) >= cuts  # (B, T)
    documents = second.long()
    changed = model(with_changed_token(ids, 0, config.vocab_size), documents=documents)
    assert torch.equal(model(ids, documents=documents)[second], changed[second])


@few
@given(model_configs(max_seq_len=lengths), st.data())
@torch.no_grad()
def test_cached_decode_matches_full_forward(config, data):
    """For any chunks. In float64 the tolerance is 1e-10: rounding errors shrink with the precision, mistakes do not."""
    ids = random_ids(config)
    chunks = partition(data, config.max_seq_len)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = random_model(config, dtype=dtype)
        cache = RingKVCache(config, batch_size=2, dtype=dtype)
        full = model(ids)
        scale = max(1.0, full.abs().max().item())
        torch.testing.assert_close(decode(model, ids, chunks, cache), full, rtol=0.0, atol=atol * scale)
        assert cache.lengths == [config.max_seq_len] * 2
        flipped = ids.flip(1)
        cache.clear()  # old contents of the memory must not matter
        torch.testing.assert_close(decode(model, flipped, chunks, cache), model(flipped), rtol=0.0, atol=atol * scale)


@few
@given(model_configs(max_seq_len=lengths), st.data())
@torch.no_grad()
def test_plain_and_fused_models_agree(config, data):
    ids, documents = random_ids(config), None
    if config.document_mask:
        cut = data.draw(st.integers(1, config.max_seq_len))
        documents = (torch.arange(config.max_seq_len) >= cut).long().expand_as(ids)
    logits = []
    for kernel in ("plain", "fused"):
        model = random_model(ModelConfig.from_dict(config.to_dict() | {"attention_kernel": kernel}))
        logits.append(model(ids, documents=documents))
    torch.testing.assert_close(*logits, **EXACT)


@settings(max_examples=25, deadline=None)
@given(model_configs(max_seq_len=lengths))
def test_activation_checkpointing_changes_neither_loss_nor_gradients(config):
    """Bit for bit, with dropout too: the recomputation draws the same random numbers."""
    ids = random_ids(config)
    results = []
    for on in (False, True):
        model = random_model(ModelConfig.from_dict(config.to_dict() | {"activation_checkpointing": on}))
        results.append(loss_and_gradients(model, ids))
    torch.testing.assert_close(*results, rtol=0.0, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(model_configs())
def test_parameter_count_matches_the_built_model(config):
    model = TransformerLM(config)
    built = sum(weight.numel() for weight in model.parameters())  # lists a shared weight once
    assert parameter_count(config) == model.num_parameters() == built


@few
@given(model_configs(max_seq_len=lengths))
def test_every_weight_receives_a_gradient(config):
    """An unused weight would have none."""
    _, gradients = loss_and_gradients(random_model(config), random_ids(config, batch_size=4))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_bfloat16_models_return_float32_logits():
    config = ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, max_seq_len=4)
    assert random_model(config, dtype=torch.bfloat16)(random_ids(config)).dtype == torch.float32
    assert random_model(config, dtype=torch.float64)(random_ids(config)).dtype == torch.float64


def tiny_model(**changes):
    return TransformerLM(ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, max_seq_len=4, **changes))


@pytest.mark.parametrize(
    ("changes", "length", "arguments", "message"),
    [
        ({}, 5, {}, r"the context holds 4 tokens, got 5; shorten the input"),
        ({}, 2, {"documents": torch.zeros(1, 2)}, r"documents were given, but document_mask is off"),
        (
            {"document_mask": True},
            2,
            {"documents": torch.zeros(1, 2), "cache": RingKVCache(tiny_model().config, 1)},
            r"documents were given, but a cache holds one document at a time",
        ),
        ({}, 3, {"cache": RingKVCache(tiny_model().config, 1, max_len=2)}, r"the context holds 2 tokens, got 3"),
    ],
    ids=["too-long", "documents-without-mask", "documents-with-cache", "cache-too-short"],
)
def test_invalid_arguments_are_refused(changes, length, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**changes)(torch.zeros(1, length, dtype=torch.long), **arguments)


def test_a_full_cache_refuses_another_token():
    model = tiny_model()
    cache = RingKVCache(model.config, batch_size=1)
    model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(ConfigError, match="the context holds 4 tokens, got 5"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
