"""Attention maps against layer outputs, head scores against values by hand."""

import math

import pytest
import torch
from hypothesis import example, given, settings

from tests.strategies import model_configs, random_ids, random_model
from tinylm.analysis.attention import (
    attention_maps,
    attention_weights,
    entropy,
    head_scores,
    induction_scores,
    watching_attention,
)
from tinylm.model import ModelConfig

few = settings(max_examples=40, deadline=None)
SHAPE = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=8)


@few
@example(ModelConfig(**SHAPE))  # query heads that share keys
@given(model_configs())
def test_maps_times_values_equal_layer_outputs(config):
    model, ids = random_model(config), random_ids(config)
    seen = {}

    def see(module, inputs, output):
        seen[module.layer] = (inputs[0], output)

    handles = [block.attention.register_forward_hook(see) for block in model.blocks]
    maps = attention_maps(model, ids)
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(model.blocks):
        x, output = seen[layer]
        values = block.attention.value(x).unflatten(-1, (config.kv_heads, -1)).transpose(1, 2)
        values = values.repeat_interleave(config.num_heads // config.kv_heads, dim=1)  # (B, H, S, E)
        expected = block.attention.output((maps[layer] @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)


@few
@given(model_configs())
def test_weights_of_each_query_sum_to_one_over_visible_keys(config):
    maps = attention_maps(random_model(config), random_ids(config))
    T = config.max_seq_len
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones_like(maps[..., 0]), atol=1e-12, rtol=0)
    query, key = torch.arange(T)[:, None], torch.arange(T)
    for layer, kind in enumerate(config.layer_kinds):
        unseen = (key > query) | (key <= query - (config.sliding_window if kind == "S" else T))
        assert (maps[layer][..., unseen] == 0).all()


@pytest.mark.parametrize("kernel", ["plain", "fused"])
def test_watching_changes_no_logit_and_ends_after_an_error(kernel):
    model, ids = random_model(ModelConfig(**SHAPE, attention_kernel=kernel)), torch.arange(8)[None]
    kernels, logits = [block.attention.attend for block in model.blocks], model(ids)
    seen = []
    with watching_attention(model, lambda layer, weights: seen.append((layer, tuple(weights.shape)))):
        assert torch.equal(model(ids), logits)
    assert seen == [(0, (1, 4, 8, 8)), (1, (1, 4, 8, 8))]

    def fail(layer, weights):
        raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError, match="seen enough"), watching_attention(model, fail):
        model(ids)
    assert [block.attention.attend for block in model.blocks] == kernels


def test_weights_and_entropy_by_hand():
    """Scores 0 and log 3 give weights 1/4 and 3/4, whose entropy is log 4 - 3/4 log 3."""
    query = torch.tensor([[[[0.0, 0.0], [math.sqrt(2), 0.0]]]], dtype=torch.float64)  # (1, 1, T = 2, E = 2)
    key = torch.tensor([[[[0.0, 5.0], [math.log(3), 7.0]]]], dtype=torch.float64)
    weights = attention_weights(query, key, None)
    torch.testing.assert_close(weights, torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]], dtype=torch.float64))
    expected = torch.tensor([[[0.0, math.log(4) - 0.75 * math.log(3)]]], dtype=torch.float64)
    torch.testing.assert_close(entropy(weights), expected)


def uniform(value: float) -> torch.Tensor:
    return torch.full((2, 4), value, dtype=torch.float64)


def without_queries(**options):
    """A network whose queries are all zero, so that attention is uniform."""
    model = random_model(ModelConfig(**SHAPE | options))
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.query.weight)
    return model


def test_scores_of_uniform_attention_by_hand():
    """Query t sees t + 1 keys, of which one is the token before."""
    model = without_queries()
    scores = head_scores(model, torch.arange(4)[None].repeat(3, 1))
    even = (math.log(2) + math.log(3) + math.log(4)) / 4
    assert scores.uniform.tolist() == pytest.approx([even] * 2, abs=1e-12)
    torch.testing.assert_close(scores.entropy, uniform(even), atol=1e-12, rtol=0)
    torch.testing.assert_close(scores.previous, uniform((1 / 2 + 1 / 3 + 1 / 4) / 3))
    found = induction_scores(model)  # the last four of eight tokens, which see 5, 6, 7 and 8 keys
    torch.testing.assert_close(found, uniform((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4))


def test_scores_within_windows_and_documents_by_hand():
    scores = head_scores(without_queries(sliding_window=2), torch.arange(4)[None])
    assert scores.uniform.tolist() == pytest.approx([3 * math.log(2) / 4] * 2)
    torch.testing.assert_close(scores.entropy, uniform(3 * math.log(2) / 4))
    torch.testing.assert_close(scores.previous, uniform(0.5))
    documents = torch.tensor([[0, 0, 1, 1]])
    scores = head_scores(without_queries(document_mask=True), torch.arange(4)[None], documents)
    assert scores.uniform.tolist() == pytest.approx([2 * math.log(2) / 4] * 2)
    torch.testing.assert_close(scores.entropy, uniform(2 * math.log(2) / 4))
    torch.testing.assert_close(scores.previous, uniform((1 / 2 + 0 + 1 / 2) / 3))


@pytest.mark.parametrize(("back", "expected"), [(3, 1.0), (4, 0.0), (2, 0.0)])
def test_induction_is_the_weight_on_the_token_after_the_first_occurrence(back, expected, monkeypatch):
    """Four tokens are repeated once: the token after the first occurrence is three positions back."""

    def look_back(query, key, visible, scale):
        weights = torch.zeros(*query.shape[:3], key.shape[2])
        weights[..., torch.arange(back, 8), torch.arange(8 - back)] = 1.0
        return weights

    monkeypatch.setattr("tinylm.analysis.attention.attention_weights", look_back)
    assert torch.equal(induction_scores(random_model(ModelConfig(**SHAPE))), uniform(expected).float())


@pytest.mark.parametrize("options", [dict(max_seq_len=3), dict(sliding_window=1)], ids=str)
def test_induction_is_nan_where_the_context_is_too_short(options):
    found = induction_scores(random_model(ModelConfig(**SHAPE | options)))
    assert found.isnan().all() and found.shape == (SHAPE["num_layers"], SHAPE["num_heads"])


def test_previous_token_score_of_a_single_token_is_nan():
    assert head_scores(random_model(ModelConfig(**SHAPE)), torch.tensor([[1]])).previous.isnan().all()
