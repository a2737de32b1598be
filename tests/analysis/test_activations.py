"""Activation statistics by hand, and the places where they are measured."""

import math

import pytest
import torch
from hypothesis import given, settings

from tests.strategies import model_configs, random_ids, random_model
from tinylm.analysis.activations import activation_statistics, describe, watching_activations
from tinylm.model import ModelConfig
from tinylm.model.positional import sinusoidal_table

few = settings(max_examples=25, deadline=None)


def test_statistics_by_hand():
    """Ninety-nine ones and a value of 101: mean 2, variance 99, so the value lies 99/√99 = √99 deviations out."""
    values = torch.ones(1, 25, 4)
    values[0, 7, 2] = 101.0
    found = describe("stream", 3, values)
    assert (found.place, found.layer) == ("stream", 3)
    assert found.mean == pytest.approx(2.0)
    assert found.std == pytest.approx(math.sqrt(99))
    assert found.largest == pytest.approx(math.sqrt(99))
    assert found.outliers == pytest.approx(0.01)
    assert found.dead == 0.0  # the root mean square is √103, and 1% of it is below 1


def test_units_small_on_every_token_are_dead():
    values = torch.full((2, 3, 4), 0.04)
    values[..., 0], values[..., 1] = 10.0, -10.0  # root mean square √50, 1% of it 0.07
    values[1, 2, 2] = -0.08  # a single token is enough
    assert describe("units", 0, values).dead == 0.25


@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_relus_that_never_fire_are_dead(activation):
    config = ModelConfig(
        vocab_size=5, d_model=8, num_layers=2, num_heads=2, d_ff=6, max_seq_len=8, activation=activation, bias=True
    )
    model = random_model(config)
    model.blocks[1].feedforward.input.bias.data[:3] = -1e6
    model.blocks[1].feedforward.input.bias.data[3:] = 10.0
    units = [each for each in activation_statistics(model, random_ids(config)) if each.place == "units"]
    assert units[1].dead == 0.5


def test_constant_values_have_no_outliers():
    found = describe("stream", 0, torch.full((1, 2, 3), 4.0))
    assert (found.mean, found.std, found.outliers, found.largest) == (4.0, 0.0, 0.0, 0.0)


@few
@given(model_configs())
def test_activations_are_consistent_with_the_network(config):
    """The activations of each place follow from those of other places."""
    model, ids = random_model(config), random_ids(config)
    seen = {}
    with (
        torch.no_grad(),
        watching_activations(model, lambda place, layer, values: seen.update({(place, layer): values})),
    ):
        logits = model(ids)
    stream = seen["embedding", -1]
    embedded = model.embedding(ids)
    if config.positional_encoding == "learned":
        embedded = embedded + model.positions.weight[: ids.shape[1]]
    elif config.positional_encoding == "sinusoidal":
        embedded = embedded + sinusoidal_table(config.max_seq_len, config.d_model)[: ids.shape[1]]
    torch.testing.assert_close(stream, embedded)
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(block.feedforward.output(seen["units", layer]), seen["feedforward", layer])
        if config.norm_placement == "pre":
            stream = stream + seen["attention", layer] + seen["feedforward", layer]
        elif config.norm_placement == "output":
            stream = stream + block.attention_norm(seen["attention", layer])
            stream = stream + block.feedforward_norm(seen["feedforward", layer])
        else:
            stream = block.attention_norm(stream + seen["attention", layer])
            stream = block.feedforward_norm(stream + seen["feedforward", layer])
        torch.testing.assert_close(stream, seen["stream", layer])
    torch.testing.assert_close(model.head(model.final_norm(stream)), logits)
    order = [(each.place, each.layer) for each in activation_statistics(model, ids)]
    assert order == list(seen) and len(order) == 1 + 4 * config.num_layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
