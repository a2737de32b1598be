"""Freezing and larger vocabularies: frozen parameters do not move, and old tokens keep their logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import FreezeConfig, freeze, grow_vocabulary
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig

CONFIG = ModelConfig(vocab_size=13, d_model=8, num_layers=3, num_heads=2, max_seq_len=12)


def moved_by_sgd(model) -> set[str]:
    """The parameters that a step of SGD changes."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(random_ids(model.config)).square().sum().backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(
    ("config", "moving"),
    [
        (FreezeConfig(layers=[0, -1]), lambda name: not name.startswith(("blocks.0.", "blocks.2."))),
        (FreezeConfig(patterns=["*.attention.*"]), lambda name: ".attention." not in name),
        (FreezeConfig(all_but_last=1), lambda name: name.startswith(("blocks.2.", "final_norm", "head"))),
        (FreezeConfig(all_but_last=0), lambda name: name.startswith(("final_norm", "head"))),
        (
            FreezeConfig(all_but_last=2, patterns=["final_norm.*"]),
            lambda name: name.startswith(("blocks.1", "blocks.2")),
        ),
    ],
)
def test_only_trainable_parameters_move(config, moving):
    model = random_model(CONFIG)
    names = {name for name, _ in model.named_parameters()}
    frozen = freeze(model, config)
    assert moved_by_sgd(model) == {name for name in names if moving(name)} == names - set(frozen)


def test_an_untied_head_trains_with_the_last_blocks():
    model = random_model(ModelConfig(**vars(CONFIG) | {"tie_embeddings": False}))
    freeze(model, FreezeConfig(all_but_last=1))
    assert "head.weight" in moved_by_sgd(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(layers=[3]), "freeze.layers: the model has blocks 0 to 2, got 3"),
        (dict(patterns=["attn.*"]), r"freeze.patterns: no parameter matches attn\.\*; known are embedding.weight"),
        (dict(all_but_last=4), "freeze.all_but_last: the model has 3 blocks, got 4"),
        (dict(all_but_last=-1), "freeze.all_but_last must not be negative"),
        (dict(patterns=["*"]), "no parameter is left to train"),
    ],
)
def test_invalid_freezes_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        freeze(random_model(CONFIG), FreezeConfig(**config))


@settings(max_examples=30, deadline=None)
@given(model_configs(), st.integers(0, 3))
@torch.no_grad()
def test_old_tokens_keep_their_logits_and_new_ones_have_the_mean(config, more):
    model, ids = random_model(config), random_ids(config)
    logits = model(ids)
    grown = grow_vocabulary(model, config.vocab_size + more)
    found = grown(ids)
    assert found.shape[-1] == config.vocab_size + more
    torch.testing.assert_close(found[..., : config.vocab_size], logits, rtol=0, atol=1e-10)
    mean = logits.mean(dim=-1, keepdim=True).expand(*logits.shape[:-1], more)
    torch.testing.assert_close(found[..., config.vocab_size :], mean, rtol=0, atol=1e-10)
    assert grown.num_parameters() == sum(parameter.numel() for parameter in grown.parameters())


def test_a_vocabulary_never_shrinks():
    with pytest.raises(ConfigError, match="vocab_size must be at least the model's 13, got 12"):
        grow_vocabulary(random_model(CONFIG), 12)
