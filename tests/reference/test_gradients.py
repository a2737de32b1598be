"""Every part's backward against finite differences of its forward, in float64; ReLU away from its kink."""

import numpy as np
import pytest

from tinylm.reference import Config, NumpyTransformerLM
from tinylm.reference.attention import attend, attention, causal_mask
from tinylm.reference.config import RopeScaling
from tinylm.reference.feedforward import ACTIVATIONS, feedforward, swiglu
from tinylm.reference.functions import cross_entropy, dropout, embedding, linear, softmax
from tinylm.reference.normalization import layernorm, rmsnorm
from tinylm.reference.parameters import draw_masks
from tinylm.reference.positional import rotary_table, rotate

STEP, RTOL = 1e-5, 1e-6


def numbers(*shape, seed=0):
    """Normal random numbers, pushed away from 0 by 0.1."""
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x + np.copysign(0.1, x)


def differences(function, x):
    """(f(x + h) - f(x - h)) / 2h for every number of x, which is restored."""
    found = np.empty_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + STEP
        above = function()
        x[index] = value - STEP
        found[index] = (above - function()) / (2 * STEP)
        x[index] = value
    return found


def check(function, inputs, gradients_of=None):
    """Compares backward with the differences of Σ y dy for a random dy, at every input.

    `function` returns y and backward; `gradients_of` puts the results of backward into the inputs' order.
    """
    y, backward = function()
    dy = numbers(*y.shape, seed=9)
    before = dy.copy()
    gradients = backward(dy)
    gradients = gradients_of(gradients) if gradients_of else gradients if isinstance(gradients, tuple) else (gradients,)
    assert np.array_equal(dy, before), "backward has changed what it was given"
    assert len(gradients) == len(inputs)
    for x, gradient in zip(inputs, gradients, strict=True):
        expected = differences(lambda: float(np.sum(function()[0] * dy)), x)
        assert gradient.shape == x.shape
        assert np.abs(gradient - expected).max() <= RTOL * np.abs(expected).max()


def in_order(weights):
    """Puts (dx, gradients by name) into the order of x and the weights."""
    return lambda result: (result[0], *(result[1][name] for name in weights))


@pytest.mark.parametrize("biased", [False, True])
def test_linear(biased):
    x, weights = numbers(2, 3, 4), {"a.weight": numbers(5, 4)} | ({"a.bias": numbers(5)} if biased else {})
    check(lambda: linear(x, weights, "a"), [x, *weights.values()], in_order(weights))


def test_embedding_whose_ids_are_repeated_or_absent():
    weights = {"a.weight": numbers(6, 3)}
    ids = np.array([[1, 4, 1], [0, 1, 5]])
    check(lambda: embedding(ids, weights, "a"), [*weights.values()], lambda result: tuple(result[1].values()))


def test_dropout():
    x = numbers(3, 4)
    check(lambda: dropout(x, np.array([0.0, 1.25, 1.25, 1.25])), [x])


def test_softmax():
    x = numbers(3, 4)
    check(lambda: softmax(x), [x])


@pytest.mark.parametrize("biased", [False, True])
def test_layernorm(biased):
    x, weights = numbers(2, 3, 5), {"a.weight": numbers(5)} | ({"a.bias": numbers(5, seed=1)} if biased else {})
    check(lambda: layernorm(x, weights, "a", Config(vocab_size=1)), [x, *weights.values()], in_order(weights))


def test_rmsnorm():
    x, weights = numbers(2, 3, 5), {"a.weight": numbers(5)}
    check(lambda: rmsnorm(x, weights, "a", Config(vocab_size=1)), [x, *weights.values()], in_order(weights))


@pytest.mark.parametrize("scaling", [None, RopeScaling(kind="yarn", factor=4.0, attention_factor=0.6)])
@pytest.mark.parametrize("width", [4, 7])
def test_rotary_positions(width, scaling):
    """Of heads of width 7 the last three numbers stay."""
    x, table = numbers(2, 3, 2, width), rotary_table(5, 4, 100.0, scaling)[:, 2:]
    assert np.array_equal(rotate(x, table)[0][..., 4:], x[..., 4:])
    check(lambda: rotate(x, table), [x])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = 2 * numbers(7, 5)
    _, slope = ACTIVATIONS[name](x)
    check(lambda: (ACTIVATIONS[name](x)[0], lambda dy: dy * slope), [x])


def test_swiglu():
    inputs = [2 * numbers(7, 3), 2 * numbers(7, 3, seed=1)]
    check(lambda: swiglu(*inputs), inputs)


DOCUMENTS = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize(("dropped", "scale"), [(False, None), (True, None), (False, 1.0)])
@pytest.mark.parametrize(("window", "documents"), [(None, None), (2, None), (None, DOCUMENTS), (3, DOCUMENTS)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_formula(kv_heads, window, documents, dropped, scale):
    inputs = [numbers(2, 4, 4, 3), numbers(2, 4, kv_heads, 3, seed=1), numbers(2, 4, kv_heads, 3, seed=2)]
    mask = causal_mask(4, 4, window, documents, np.dtype(float))
    dropout_mask = (numbers(2, 4, 4, 4) > -0.5) / 0.7 if dropped else None
    check(lambda: attend(*inputs, mask, dropout_mask, scale), inputs)


LAYER = dict(vocab_size=5, d_model=8, num_heads=4, num_kv_heads=2, d_ff=6, max_seq_len=4, bias=True)


def layer_weights(config, part):
    """Random weights of a part of the first block."""
    shapes = {name: shape for name, shape in config.shapes().items() if name.startswith(f"{part}.")}
    return {name: numbers(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    "form",
    [
        {},
        dict(qk_norm=False),
        dict(qk_norm_width="all", d_head=3, rotary_fraction=0.7),
        dict(qkv_bias=False, d_head=5, rotary_fraction=0.8, attention_scale=1.0),
    ],
)
def test_attention_layer(form):
    config = Config(**LAYER, **form)
    x, weights = numbers(2, 4, 8), layer_weights(config, name := "blocks.0.attention")
    mask, rotary = causal_mask(4, 4, None, None, np.dtype(float)), rotary_table(4, config.rotary_dim, 100.0)
    check(lambda: attention(x, weights, name, config, mask, rotary), [x, *weights.values()], in_order(weights))


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_feedforward_layer(activation):
    config = Config(**LAYER, activation=activation)
    x, weights = numbers(2, 3, 8), layer_weights(config, name := "blocks.0.feedforward")
    check(lambda: feedforward(x, weights, name, config), [x, *weights.values()], in_order(weights))


def test_cross_entropy_with_ignored_targets():
    """The sum is divided by 7, which is not the number of targets."""
    z, targets = numbers(5, 6), np.array([3, -100, 0, 5, -100])
    _, gradient = cross_entropy(z, targets, 7)
    expected = differences(lambda: cross_entropy(z, targets, 7)[0], z)
    assert np.abs(gradient - expected).max() <= RTOL * np.abs(expected).max()


@pytest.mark.parametrize(
    "form",
    [
        dict(sliding_window=2, document_mask=True, dropout=0.2),
        dict(norm_placement="post", norm="layernorm", positional_encoding="learned", activation="gelu", qk_norm=False),
        dict(positional_encoding="sinusoidal", tie_embeddings=False, activation="gelu_tanh", dropout=0.2),
        dict(norm_placement="output", qk_norm_width="all", head_bias=True, layer_pattern="SL", sliding_window=2),
        dict(residual="parallel", dropout=0.2, attention_scale=1.0, rope_scaling=dict(kind="linear", factor=2.0)),
        dict(
            residual="parallel_one_norm",
            norm="layernorm",
            activation="gelu",
            qkv_bias=False,
            head_bias=True,
            d_head=5,
            tie_embeddings=False,
            rotary_fraction=0.8,
            rope_scaling=dict(kind="yarn", factor=4.0),
            layer_pattern="NL",
        ),
    ],
)
def test_the_whole_network(form):
    """Along a random direction of each parameter; the parts are checked number by number above.

    ReLU is left out: somewhere in a network an input is always near its kink.
    """
    config = Config(**LAYER, num_layers=2, **form)
    model = NumpyTransformerLM(config, {name: 0.6 * numbers(*shape) for name, shape in config.shapes().items()})
    random = np.random.default_rng(0)
    inputs, targets = random.integers(5, size=(2, 2, 4))
    targets[0, 1] = -100
    options = dict(documents=DOCUMENTS if config.document_mask else None)
    options["dropout"] = draw_masks(config, inputs.shape, random, np.dtype(float))
    _, grads = model.loss_and_grads(inputs, targets, **options)
    assert grads.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        start, direction, amount = parameter.copy(), numbers(*parameter.shape, seed=3), np.zeros(1)

        def moved(start=start, direction=direction, amount=amount, parameter=parameter):
            parameter[...] = start + amount * direction
            return model.loss_and_grads(inputs, targets, **options)[0]

        (expected,) = differences(moved, amount)
        parameter[...] = start
        # where the gradient is exactly 0 (the keys' bias shifts all scores of a query equally), rounding remains
        assert abs(np.sum(grads[name] * direction) - expected) <= max(RTOL * abs(expected), 1e-10), name
