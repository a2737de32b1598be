"""Initial weights follow GPT-2's scheme, within statistical error."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids
from tinylm.model import ModelConfig, TransformerLM

CONFIG = dict(vocab_size=97, d_model=64, num_layers=8, num_heads=4, max_seq_len=70, positional_encoding="learned")
ACTIVATIONS = pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh"])
WRITERS = ("attention.output.weight", "feedforward.output.weight")  # the layers that write to the residual stream


@ACTIVATIONS
def test_weights_follow_gpt2s_normal_distributions(activation):
    """The standard deviation is 0.02, or 0.02/√(2 layers) for the writers. Norm weights are one, biases zero.

    The mean of n normal draws has standard error std/√n, their standard deviation about std/√(2n). Each must lie
    within five standard errors; one in 1.7 million does not. The largest weight must exceed 3 std, which
    distinguishes a normal from a uniform distribution (n ≥ 4096 draws all stay below with probability < 2e-5).
    """
    torch.manual_seed(0)
    model = TransformerLM(
        ModelConfig(**CONFIG, activation=activation, norm="layernorm", bias=True, tie_embeddings=False)
    )
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == (0.0 if name.endswith("bias") else 1.0)).all(), name
            continue
        std = 0.02 / math.sqrt(2 * 8) if name.endswith(WRITERS) else 0.02
        n = weight.numel()
        assert abs(weight.mean().item()) <= 5 * std / math.sqrt(n), name
        assert abs(weight.std().item() - std) <= 5 * std / math.sqrt(2 * n), name
        assert weight.abs().max().item() > 3 * std, name


@settings(max_examples=30, deadline=None)
@given(model_configs(norm_placement=st.just("pre"), zero_init_output=st.just(True), dropout=st.just(0.0)))
@torch.no_grad()
def test_zero_init_output_makes_every_block_the_identity(config):
    """With pre-norm, x + 0 + 0 = x. (With post-norm a block would apply its norms.)"""
    model = TransformerLM(config)
    x = torch.randn(2, config.max_seq_len, config.d_model)
    rotary = model.positions(x)[:, :] if config.positional_encoding == "rotary" else None
    for block in model.blocks:
        assert torch.equal(block(x, None, rotary, None), x)


@ACTIVATIONS
def test_zero_init_output_zeroes_only_the_writers(activation):
    model = TransformerLM(ModelConfig(**CONFIG, activation=activation, zero_init_output=True))
    zero = {name for name, weight in model.named_parameters() if not weight.any()}
    assert zero == {f"blocks.{layer}.{name}" for layer in range(8) for name in WRITERS}


def test_initial_loss_is_that_of_uniform_guessing():
    """With small logits the loss is ln V plus half their variance, which is 0.02² D = 0.026 here."""
    torch.manual_seed(0)
    config = ModelConfig(**CONFIG, tie_embeddings=False)
    ids = random_ids(config, batch_size=16)
    loss = torch.nn.functional.cross_entropy(TransformerLM(config)(ids).flatten(0, 1), ids.flatten())
    assert abs(loss.item() - math.log(97)) < 0.05


def test_equal_seeds_give_equal_weights_and_different_seeds_do_not():
    def weights(seed):
        torch.manual_seed(seed)
        return TransformerLM(ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=2)).embedding.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_share_storage(tied):
    model = TransformerLM(ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=2, tie_embeddings=tied))
    assert (model.head.weight is model.embedding.weight) == tied
    assert (model.head.weight.data_ptr() == model.embedding.weight.data_ptr()) == tied


def test_tied_weights_stay_tied_through_conversion_and_loading():
    config = ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=2)
    model = TransformerLM(config).double()
    model.load_state_dict(TransformerLM(config).double().state_dict())
    assert model.head.weight is model.embedding.weight
