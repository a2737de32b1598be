"""Every part's backward against finite differences of its forward, in float64; ReLU away from its kink."""

import numpy as np
import pytest

from tinylm.reference import Config, NumpyTransformerLM
from tinylm.reference.attention import attend, attention, hidden_keys
from tinylm.reference.dropout import draw_masks, dropout
from tinylm.reference.feedforward import ACTIVATIONS, activate, feedforward, swiglu
from tinylm.reference.functions import cross_entropy, embedding, linear
from tinylm.reference.normalization import layernorm, rmsnorm
from tinylm.reference.positional import rotary_table, rotate

STEP, RTOL = 1e-5, 1e-6


def numbers(*shape, seed=0):
    """Normal, but none nearer to 0 than 0.1."""
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x + np.copysign(0.1, x)


def differences(function, x):
    """(f(x + h) - f(x - h)) / 2h for every number of x, which is put back."""
    found = np.empty_like(x)
    for place in np.ndindex(x.shape):
        value = x[place]
        x[place] = value + STEP
        above = function()
        x[place] = value - STEP
        found[place] = (above - function()) / (2 * STEP)
        x[place] = value
    return found


def check(function, inputs, gradients_of=None):
    """Compares backward with the differences of Σ y dy for a random dy, at every input.

    `function` gives y and backward; `gradients_of` puts what backward returns in the inputs' order.
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


@pytest.mark.parametrize("biased", [False, True])
def test_linear(biased):
    inputs = [numbers(2, 3, 4), numbers(5, 4)] + [numbers(5)] * biased
    check(lambda: linear(*inputs, *([] if biased else [None])), inputs, lambda g: g[: len(inputs)])


def test_embedding_whose_ids_come_again_or_never():
    table = numbers(6, 3)
    check(lambda: embedding(np.array([[1, 4, 1], [0, 1, 5]]), table), [table])


def test_dropout():
    x = numbers(3, 4)
    check(lambda: dropout(x, np.array([0.0, 1.25, 1.25, 1.25])), [x])


@pytest.mark.parametrize("biased", [False, True])
def test_layernorm(biased):
    inputs = [numbers(2, 3, 5), numbers(5)] + [numbers(5, seed=1)] * biased
    check(lambda: layernorm(*inputs, *([] if biased else [None]), 1e-5), inputs, lambda g: g[: len(inputs)])


def test_rmsnorm():
    inputs = [numbers(2, 3, 5), numbers(5)]
    check(lambda: rmsnorm(*inputs, 1e-5), inputs)


def test_rotary_positions():
    x = numbers(2, 3, 2, 4)
    check(lambda: rotate(x, rotary_table(5, 4, 100.0)[:, 2:]), [x])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = 2 * numbers(7, 5)
    check(lambda: activate(x, ACTIVATIONS[name]), [x])


def test_swiglu():
    x = 2 * numbers(7, 6)
    check(lambda: swiglu(x), [x])


DOCUMENTS = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(("window", "documents"), [(None, None), (2, None), (None, DOCUMENTS), (3, DOCUMENTS)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_formula(kv_heads, window, documents, dropped):
    inputs = [numbers(2, 4, 4, 3), numbers(2, 4, kv_heads, 3, seed=1), numbers(2, 4, kv_heads, 3, seed=2)]
    hidden = hidden_keys(4, 4, window, documents, np.dtype(float))
    mask = (numbers(2, 4, 4, 4) > -0.5) / 0.7 if dropped else None
    check(lambda: attend(*inputs, hidden, mask), inputs)


LAYER = dict(vocab_size=5, d_model=8, num_heads=4, num_kv_heads=2, d_ff=6, max_seq_len=4, bias=True)


def layer_weights(config, part):
    """Random weights of a part of the first block, and the order they stand in."""
    shapes = {name.removeprefix(part): shape for name, shape in config.shapes().items() if name.startswith(part)}
    return {name: numbers(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_layer(qk_norm):
    config = Config(**LAYER, qk_norm=qk_norm)
    x, weights = numbers(2, 4, 8), layer_weights(config, "blocks.0.attention.")
    hidden, rotary = hidden_keys(4, 4, None, None, np.dtype(float)), rotary_table(4, 2, 100.0)
    in_order = lambda g: (g[0], *(g[1][name] for name in weights))
    check(lambda: attention(x, weights, config, hidden, rotary), [x, *weights.values()], in_order)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_feedforward_layer(activation):
    config = Config(**LAYER, activation=activation)
    x, weights = numbers(2, 3, 8), layer_weights(config, "blocks.0.feedforward.")
    in_order = lambda g: (g[0], *(g[1][name] for name in weights))
    check(lambda: feedforward(x, weights, config), [x, *weights.values()], in_order)


def test_cross_entropy_with_ignored_targets():
    """At a sum divided by 7, which is not the number of targets."""
    inputs, targets = [numbers(5, 4), numbers(6, 4)], np.array([3, -100, 0, 5, -100])
    _, *gradients = cross_entropy(*inputs, targets, 7)
    for x, gradient in zip(inputs, gradients, strict=True):
        expected = differences(lambda: cross_entropy(*inputs, targets, 7)[0], x)
        assert np.abs(gradient - expected).max() <= RTOL * np.abs(expected).max()


def test_cross_entropy_by_blocks_of_rows_is_the_formula():
    """More rows than are worked on at a time."""
    x, weight, targets = numbers(300, 4), numbers(2000, 4), np.arange(300) * 6
    loss, dx, dweight = cross_entropy(x, weight, targets, 300)
    p = np.exp(x @ weight.T)
    p /= p.sum(axis=1, keepdims=True)
    right = p[np.arange(300), targets]
    dz = (p - (targets[:, None] == np.arange(2000))) / 300
    assert abs(loss + np.log(right).mean()) < 1e-12
    assert np.abs(dx - dz @ weight).max() < 1e-14
    assert np.abs(dweight - dz.T @ x).max() < 1e-14


@pytest.mark.parametrize(
    "form",
    [
        dict(sliding_window=2, document_mask=True, dropout=0.2),
        dict(norm_placement="post", norm="layernorm", positional_encoding="learned", activation="gelu", qk_norm=False),
        dict(positional_encoding="sinusoidal", tie_embeddings=False, activation="gelu_tanh", dropout=0.2),
    ],
)
def test_the_whole_network(form):
    """Along a random direction of each parameter: the parts are checked number by number above.

    No ReLU among them: somewhere in a network one always stands at its kink.
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
        start, direction, place = parameter.copy(), numbers(*parameter.shape, seed=3), np.zeros(1)

        def moved(start=start, direction=direction, place=place, parameter=parameter):
            parameter[...] = start + place * direction
            return model.loss_and_grads(inputs, targets, **options)[0]

        (expected,) = differences(moved, place)
        parameter[...] = start
        # where the gradient is 0 by theory (keys' biases shift all scores of a query alike), rounding is left
        assert abs(np.sum(grads[name] * direction) - expected) <= max(RTOL * abs(expected), 1e-10), name
