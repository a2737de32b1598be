"""The logit lens against the network, and against shorter networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.strategies import model_configs, random_ids, random_model
from tinylm.analysis.lens import layer_views, logit_lens, read_layers
from tinylm.model import ModelConfig, TransformerLM

few = settings(max_examples=40, deadline=None)


@few
@given(model_configs())
def test_last_layer_gives_the_model_output(config):
    model, ids = random_model(config), random_ids(config)
    *_, last = logit_lens(model, ids)
    with torch.no_grad():
        assert torch.equal(last, model(ids))


@few
@given(model_configs())
def test_each_layer_matches_a_network_that_ends_there(config):
    model, ids = random_model(config), random_ids(config)
    lenses = list(logit_lens(model, ids))
    assert len(lenses) == config.num_layers + 1
    shorter = copy.deepcopy(model)
    for count in reversed(range(config.num_layers + 1)):
        shorter.blocks = shorter.blocks[:count]
        torch.testing.assert_close(lenses[count], shorter(ids), atol=1e-12, rtol=1e-12)


@few
@given(model_configs())
def test_view_of_the_last_layer_matches_the_model(config):
    model, ids = random_model(config), random_ids(config)
    targets = random_ids(config, seed=1)
    view = layer_views(model, ids, targets)[-1]
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).item()
    assert view.loss == pytest.approx(loss, abs=1e-9)
    assert (view.layer, view.agreement) == (config.num_layers - 1, 1.0)
    assert view.divergence == pytest.approx(0.0, abs=1e-9)


def test_views_by_hand():
    """A block that changes nothing, with known embedding and head: both layers give the same known prediction."""
    config = ModelConfig(
        vocab_size=2, d_model=2, num_layers=1, num_heads=1, max_seq_len=4, zero_init_output=True, tie_embeddings=False,
        norm="layernorm", norm_placement="post", positional_encoding="none", norm_eps=1e-12,
    )  # fmt: skip
    model = TransformerLM(config).double().eval()
    model.embedding.weight.data = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).double()  # normalized: (1, -1) and (-1, 1)
    model.head.weight.data = torch.eye(2).double()
    ids, targets = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])
    straight, after = layer_views(model, ids, targets)
    # after the embedding the logits are 3, 1 and 1, 3, which differ by 2 as well
    chance = torch.tensor(2.0).double().sigmoid()
    loss = -(chance.log() + (1 - chance).log()).item() / 2
    for view in (straight, after):
        assert (view.loss, view.agreement) == (pytest.approx(loss), 1.0)
        assert view.divergence == pytest.approx(0.0, abs=1e-12)
    model.head.weight.data *= 2  # logits (2, 6), and (1, -1)
    model.embedding.weight.data = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).double()
    model.blocks[0].feedforward_norm.weight.data *= -0.5  # the block turns (1, 3) into (0.5, -0.5)
    straight, after = layer_views(model, ids, targets)
    assert (straight.agreement, after.agreement) == (0.0, 1.0)
    p, q = torch.tensor(2.0).double().sigmoid(), torch.tensor(-4.0).double().sigmoid()
    assert after.loss == pytest.approx(-p.log().item())
    assert straight.loss == pytest.approx(-q.log().item())
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).item()
    assert straight.divergence == pytest.approx(divergence)


def test_readings_are_the_most_probable_tokens_of_each_layer():
    config = ModelConfig(vocab_size=13, d_model=16, num_layers=2, num_heads=2, max_seq_len=6)
    model, ids = random_model(config), random_ids(config, 1)
    readings = read_layers(model, ids)
    for layer, logits in enumerate(logit_lens(model, ids)):
        chances = logits[0].exp() / logits[0].exp().sum(dim=-1, keepdim=True)
        assert readings.best[layer].tolist() == [int(row.argmax()) for row in chances]
        torch.testing.assert_close(readings.probability[layer], chances.amax(dim=-1))
