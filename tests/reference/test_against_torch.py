"""The twin against `tinylm.model` and autograd, for any config: logits, loss, every gradient."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.reference import Config, NumpyTransformerLM
from tinylm.reference.cache import KVCache
from tinylm.reference.fast import FastTransformerLM
from tinylm.reference.parameters import draw_masks

# each axis alone, then all that go together
AXES = {
    "heads of another width": dict(num_heads=3, num_kv_heads=1, d_head=6),
    "biased queries": dict(qkv_bias=True),
    "unbiased queries": dict(bias=True, qkv_bias=False),
    "a biased head": dict(head_bias=True),
    "a biased head of its own": dict(head_bias=True, tie_embeddings=False),
    "linear scaling": dict(rope_scaling=dict(kind="linear", factor=4.0)),
    "llama3 scaling": dict(rope_scaling=dict(kind="llama3", factor=8.0, original_max_seq_len=64), rope_theta=100.0),
    "yarn": dict(rope_scaling=dict(kind="yarn", factor=4.0, original_max_seq_len=128), rope_theta=100.0),
    "yarn, attention factor": dict(
        rope_scaling=dict(kind="yarn", factor=4.0, attention_factor=0.6, truncate=False, beta_fast=2.0, beta_slow=0.2)
    ),
    "half rotary": dict(rotary_fraction=0.5),
    "parallel": dict(residual="parallel"),
    "parallel, LayerNorm": dict(residual="parallel", norm="layernorm", bias=True),
    "parallel, one norm": dict(residual="parallel_one_norm"),
    "normed outputs": dict(norm_placement="output"),
    "heads normed together": dict(qk_norm_width="all"),
    "windows by layer": dict(layer_pattern="SSL", sliding_window=3),
    "no positions in a layer": dict(layer_pattern="LN"),
    "unscaled attention": dict(attention_scale=1.0),
    "many": dict(
        num_heads=4, num_kv_heads=2, d_head=6, qkv_bias=True, head_bias=True, rotary_fraction=0.7,
        rope_scaling=dict(kind="yarn", factor=4.0, original_max_seq_len=64), rope_theta=100.0, qk_norm_width="all",
        residual="parallel_one_norm", layer_pattern="SNL", sliding_window=3, attention_scale=0.3,
    ),
}  # fmt: skip
AXIS = dict(vocab_size=11, d_model=16, num_layers=3, num_heads=2, d_ff=12, max_seq_len=9)

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative to the largest number, if that is above 1


def twin_of(model):
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del state["head.weight"]
    return NumpyTransformerLM(Config.from_dict(model.config.to_dict()), state)


def assert_near(found, expected, tolerance):
    expected = expected.detach().numpy()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@st.composite
def batches(draw, config):
    """Inputs, targets of which some are ignored, and documents or None."""
    seed, length = draw(st.integers(0, 1000)), draw(st.integers(1, config.max_seq_len))
    random = np.random.default_rng(seed)
    inputs, targets = random.integers(config.vocab_size, size=(2, 3, length))
    targets[random.random(targets.shape) < draw(st.sampled_from([0.0, 0.4]))] = -100
    targets[0, 0] = 0  # without any target there is no mean
    documents = np.sort(random.integers(3, size=inputs.shape)) if config.document_mask and draw(st.booleans()) else None
    return inputs, targets, documents


def check_everything(model, inputs, targets, documents, masks, tolerance):
    """Compares logits without dropout, then loss and gradients with the given masks."""
    twin, named = twin_of(model), None if documents is None else torch.from_numpy(documents)
    with torch.no_grad():
        assert_near(twin.logits(inputs, documents), model(torch.from_numpy(inputs), documents=named), tolerance)
    model.train(masks is not None)
    logits = model(torch.from_numpy(inputs), documents=named)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    expected.backward()
    loss, grads = twin.loss_and_grads(inputs, targets, documents=documents, dropout=masks)
    assert abs(loss - expected.item()) <= tolerance * max(1.0, expected.item())
    expected_grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert grads.keys() == expected_grads.keys()
    for name, gradient in grads.items():
        assert_near(gradient, expected_grads[name], tolerance)


@settings(max_examples=80, deadline=None)
@given(st.data(), model_configs(), st.sampled_from(list(TOLERANCES)), st.integers(0, 1000))
def test_logits_loss_and_gradients_match_autograd(data, config, dtype, seed):
    model = random_model(config, seed, dtype)
    check_everything(model, *data.draw(batches(config)), None, TOLERANCES[dtype])


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_each_axis_matches_autograd_and_changes_the_network(axis):
    random = np.random.default_rng(0)
    inputs, targets = random.integers(11, size=(2, 3, 9))
    targets[0, :4] = -100
    model = random_model(ModelConfig(**AXIS | axis))
    check_everything(model, inputs, targets, None, None, 1e-10)
    plain = random_model(
        ModelConfig(**AXIS | {name: axis[name] for name in ("tie_embeddings", "bias") if name in axis})
    )
    assert np.abs(twin_of(model).logits(inputs) - twin_of(plain).logits(inputs)).max() > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.data(),
    model_configs(dropout=st.just(0.3), attention_kernel=st.just("plain"), activation_checkpointing=st.just(False)),
)
def test_gradients_through_dropout_match_autograd(data, config):
    """PyTorch uses the twin's masks, in the order in which its layers apply dropout."""
    model = random_model(config)
    inputs, targets, documents = data.draw(batches(config))
    masks = draw_masks(config, inputs.shape, np.random.default_rng(0), np.dtype(float))
    in_order = iter(masks.values())

    def given_masks(x, p, training=True, inplace=False):
        return x * torch.from_numpy(next(in_order)) if training and p > 0 else x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", given_masks)
        check_everything(model, inputs, targets, documents, masks, 1e-10)
    assert next(in_order, None) is None


def test_masks_are_drawn_with_their_probability_and_keep_the_mean():
    """Over 16 * 64 * 64 numbers, the fraction dropped is within 4 standard deviations of p."""
    config = Config(vocab_size=5, d_model=64, num_layers=1, max_seq_len=64, dropout=0.3)
    masks = draw_masks(config, (16, 64), np.random.default_rng(0), np.dtype(np.float32))
    shapes = {name: mask.shape for name, mask in masks.items()}
    wide = (16, 64, 64)
    assert shapes == {
        "embedding": wide,
        "blocks.0.attention.weights": (16, 4, 64, 64),
        "blocks.0.attention": wide,
        "blocks.0.feedforward": wide,
    }
    for mask in masks.values():
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        assert abs((mask == 0).mean() - 0.3) < 4 * (0.3 * 0.7 / mask.size) ** 0.5
    model = NumpyTransformerLM(config)
    ids = np.arange(64)[None] % 5
    losses = [model.loss_and_grads(ids, ids, dropout=np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@settings(max_examples=40, deadline=None)
@given(model_configs(), st.integers(0, 1000))
def test_initial_parameters_have_pytorchs_names_shapes_and_order(config, seed):
    state = TransformerLM(config).state_dict()
    if config.tie_embeddings:
        del state["head.weight"]
    found = NumpyTransformerLM(Config.from_dict(config.to_dict()), seed=seed).parameters
    assert [(name, p.shape) for name, p in found.items()] == [(name, tuple(p.shape)) for name, p in state.items()]
    for name, parameter in found.items():
        if parameter.ndim == 1 or (config.zero_init_output and name.endswith("output.weight")):
            assert np.array_equal(parameter, state[name].numpy()), name


def test_initial_matrices_have_gpt2s_standard_deviations():
    """Standard deviations of 16,384 numbers and more, within 4 of their own (0.6% each)."""
    found = NumpyTransformerLM(Config(vocab_size=200, d_model=128, num_layers=2, bias=True)).parameters
    for name, parameter in found.items():
        if parameter.ndim == 2:
            expected = 0.02 / 2 if name.endswith("output.weight") else 0.02
            assert abs(parameter.std() / expected - 1) < 4 / (2 * parameter.size) ** 0.5, name
            assert abs(parameter.mean()) < 4 * expected / parameter.size**0.5, name


@settings(max_examples=30, deadline=None)
@given(st.data(), model_configs())
def test_evaluate_is_cross_entropy_and_argmax(data, config):
    model = random_model(config)
    inputs, targets, documents = data.draw(batches(config))
    nats, count, hits = twin_of(model).evaluate(inputs, targets, documents)
    named, labels = None if documents is None else torch.from_numpy(documents), torch.from_numpy(targets).flatten()
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs), documents=named).flatten(0, 1)
    assert abs(nats - F.cross_entropy(logits, labels, reduction="sum").item()) < 1e-10
    assert (count, hits) == (int((labels != -100).sum()), int((logits.argmax(dim=1) == labels).sum()))


@settings(max_examples=40, deadline=None)
@given(st.data(), model_configs())
def test_cached_logits_match_the_full_forward(data, config):
    """The text is read in pieces of one or several tokens."""
    twin, ids = twin_of(random_model(config)), random_ids(config).numpy()
    cuts = data.draw(st.lists(st.integers(1, ids.shape[1]), max_size=4).map(lambda cuts: sorted(set(cuts))))
    pieces = [piece for piece in np.split(ids, cuts, axis=1) if piece.size]
    for model in (twin, FastTransformerLM(twin.config, twin.parameters)):
        cache = KVCache()
        hidden = np.concatenate([model.hidden(piece, cache=cache)[0] for piece in pieces], axis=1)
        assert np.abs(model.head(hidden)[0] - twin.logits(ids)).max() < 1e-12


def test_errors_name_the_mistake():
    model = NumpyTransformerLM(Config(vocab_size=5, d_model=8, num_layers=1, max_seq_len=3))
    ids = np.zeros((1, 4), int)
    with pytest.raises(ValueError, match="the context holds 3 tokens, got 4"):
        model.logits(ids)
    with pytest.raises(ValueError, match="document_mask is off"):
        model.logits(ids[:, :2], ids[:, :2])
    with pytest.raises(ValueError, match="n_layer: no such field"):
        Config.from_dict({"vocab_size": 5, "n_layer": 2})
    with pytest.raises(ValueError, match="rope_type: no such field of the config's rope_scaling"):
        Config.from_dict({"vocab_size": 5, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}})
    with pytest.raises(ValueError, match="vocab_size: missing in the config"):
        Config.from_dict({"d_model": 8})
    with pytest.raises(ValueError, match=r"not the config's: \['head.weight'\]"):
        NumpyTransformerLM(model.config, {**model.parameters, "head.weight": np.zeros((5, 8))})
    with pytest.raises(ValueError, match=r"embedding.weight must have the shape \(5, 8\), got \(5, 7\)"):
        NumpyTransformerLM(model.config, {**model.parameters, "embedding.weight": np.zeros((5, 7))})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(norm_placement="sandwich"), "norm_placement must be one of pre, post, output, got 'sandwich'"),
        (dict(residual="both"), "residual must be one of sequential, parallel, parallel_one_norm, got 'both'"),
        (dict(residual="parallel", norm_placement="post"), "residual=parallel needs norm_placement=pre, got post"),
        (dict(qk_norm_width="group"), "qk_norm_width must be one of head, all, got 'group'"),
        (dict(rope_scaling=dict(kind="dynamic", factor=2.0)), "rope_scaling.kind must be one of linear, llama3, yarn"),
        (dict(rope_scaling=dict(kind="yarn")), "factor: missing in the config's rope_scaling"),
        (dict(rope_scaling=["yarn", 2.0]), "the config's rope_scaling must have fields by name, got ['yarn', 2.0]"),
        (dict(rope_scaling=dict(kind="linear", factor=2.0), positional_encoding="learned"), "need positional_encoding"),
        (dict(rotary_fraction=0.5, positional_encoding="none"), "need positional_encoding=rotary"),
        (dict(rotary_fraction=0.4), "rotary positions turn an even number of a head's dimensions, got 25"),
        (dict(rotary_fraction=0.01), "got 0"),
        (dict(rotary_fraction=1.5), "got 96"),
        (dict(layer_pattern=5), "layer_pattern must be of the letters S, L and N, got 5"),
        (dict(layer_pattern=""), "layer_pattern must be of the letters S, L and N, got ''"),
        (dict(layer_pattern="LX"), "layer_pattern must be of the letters S, L and N, got 'LX'"),
        (dict(layer_pattern="SL"), "S and sliding_window need each other"),
        (dict(layer_pattern="LN", sliding_window=4), "S and sliding_window need each other"),
        (dict(layer_pattern="LN", positional_encoding="learned"), "N needs positional_encoding=rotary"),
    ],
)
def test_values_that_the_twin_would_misread_are_refused_as_by_model_config(values, message):
    for config in (Config, ModelConfig):
        with pytest.raises(ValueError, match=re.escape(message) if config is Config else None):
            config(vocab_size=5, **values)


def test_config_has_model_configs_defaults():
    theirs = ModelConfig(vocab_size=7)
    ours = Config(vocab_size=7)
    for name, value in ours.to_dict().items():
        assert getattr(theirs, name) == value, name
    assert ours.to_dict().keys() | {"attention_kernel", "activation_checkpointing"} == theirs.to_dict().keys()
