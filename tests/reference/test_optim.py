"""The hand-written optimizers against torch.optim, tinylm's Muon, torch's clipping, and tinylm's schedule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.muon import orthogonalize as orthogonalize_by_torch
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.optimizer import make_optimizer as make_torch_optimizer
from tinylm.optim.schedule import ScheduleConfig
from tinylm.optim.schedule import learning_rate as learning_rate_of_training
from tinylm.reference import optim

# matrices that are square, wide and tall, several of one shape; biases; an embedding and a head that are not tied
SMALL = ModelConfig(
    vocab_size=11, d_model=8, num_layers=2, num_heads=2, d_ff=12, max_seq_len=4, norm="layernorm", bias=True,
    positional_encoding="learned", tie_embeddings=False,
)  # fmt: skip
SETTINGS = dict(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3, momentum=0.7)  # all of them felt


def network(dtype: torch.dtype = torch.float64) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(SMALL).to(dtype)


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def random_gradients(parameters: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Of very different sizes, as those of a deep network are."""
    draw = np.random.default_rng(seed)
    return {
        name: (draw.standard_normal(array.shape) * 10 ** draw.uniform(-4, 1)).astype(array.dtype)
        for name, array in parameters.items()
    }


def rate(step: int) -> float:
    return 0.02 / (1 + step)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("sgd", {}),
        ("adam", {}),
        ("adamw", {}),
        ("muon", {"ns_steps": 4}),
        ("muon", {"neuron_beta": 0.9}),
        ("muon", {"ns_coefficients": "polar_express", "ns_steps": 7}),
    ],
)
def test_twenty_steps_match_pytorchs_optimizers(name, own, dtype, tolerance):
    """SGD, Adam and AdamW are torch.optim's; Muon is tinylm.optim.optimizer's, tested against its formula there."""
    model, settings = network(dtype), SETTINGS | own
    theirs = make_torch_optimizer(model, OptimizerConfig(name=name, **settings))
    parameters = arrays(model)
    ours = optim.Optimizer(parameters, name=name, **settings)
    for step in range(20):
        gradients = random_gradients(parameters, step)
        for group in theirs.param_groups:
            group["lr"] = rate(step)
        for each, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[each].copy())
        before = {each: gradient.copy() for each, gradient in gradients.items()}
        theirs.step()
        ours.step(gradients, rate(step))
        for each in before:
            np.testing.assert_array_equal(gradients[each], before[each])  # a rule moves weights, not gradients
    for each, parameter in model.named_parameters():
        assert parameters[each].dtype == parameter.detach().numpy().dtype
        np.testing.assert_allclose(parameters[each], parameter.detach().numpy(), rtol=0, atol=tolerance, err_msg=each)


def test_adamws_first_step_is_the_learning_rate_in_the_gradients_direction():
    """At t = 1, m̂ = G and ŝ = G²: by hand, W - lr sign(G) for ε → 0, whatever the gradient's size."""
    parameters = {"x": np.array([1.0, -2.0, 3.0])}
    optimizer = optim.Optimizer(parameters, name="adamw", eps=1e-12)
    optimizer.step({"x": np.array([1e-4, -5.0, 300.0])}, lr=0.1)
    np.testing.assert_allclose(parameters["x"], [0.9, -1.9, 2.9], rtol=0, atol=1e-8)


def test_sgd_with_momentum_by_hand():
    """v = 2, 0.5 * 2 + 2 = 3; W = 1 - 0.1 * 2 - 0.1 * 3."""
    parameters = {"x": np.array([1.0])}
    optimizer = optim.Optimizer(parameters, name="sgd", lr=0.1, momentum=0.5)
    for _ in range(2):
        optimizer.step({"x": np.array([2.0])})
    np.testing.assert_allclose(parameters["x"], [0.5], rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_orthogonalize_maps_the_singular_values_by_the_quintic_and_matches_torchs(shape):
    matrices = np.random.default_rng(0).standard_normal((3, *shape))
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    s = s / (np.linalg.norm(s, axis=-1, keepdims=True) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    found = optim.orthogonalize(matrices)
    np.testing.assert_allclose(found, (u * s[:, None, :]) @ vt, rtol=0, atol=1e-9)
    by_torch = orthogonalize_by_torch(torch.from_numpy(matrices)).numpy()
    np.testing.assert_allclose(found, by_torch, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_an_optimizer_that_goes_on_from_its_state_is_the_same_to_the_last_bit(name):
    whole, parts = arrays(network()), arrays(network())
    optimizer = optim.Optimizer(whole, name=name)
    for step in range(6):
        optimizer.step(random_gradients(whole, step), rate(step))
    first = optim.Optimizer(parts, name=name)
    for step in range(3):
        first.step(random_gradients(parts, step), rate(step))
    state = {each: array.copy() for each, array in first.state().items()}
    second = optim.Optimizer(parts, name=name)
    second.load_state(state)
    for step in range(3, 6):
        second.step(random_gradients(parts, step), rate(step))
    for each in whole:
        np.testing.assert_array_equal(whole[each], parts[each], err_msg=each)


def test_what_cannot_be_is_refused():
    parameters = arrays(network())
    with pytest.raises(ValueError, match="name must be one of adamw, adam, sgd, muon, got 'lion'"):
        optim.Optimizer(parameters, name="lion")
    with pytest.raises(ValueError, match=r"name must be one of cosine, .*, got 'step'"):
        optim.learning_rate(5, 10, lr=1.0, name="step", warmup_steps=0)
    state = optim.Optimizer(parameters, name="sgd").state()
    with pytest.raises(ValueError, match="the state is not of adamw over these parameters"):
        optim.Optimizer(parameters, name="adamw").load_state(state)
    state["embedding.weight/velocity"] = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"embedding.weight/velocity has shape \(2, 2\), needs \(11, 8\)"):
        optim.Optimizer(parameters, name="sgd").load_state(state)


# --- clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_clipping_matches_torchs(max_norm, dtype, tolerance):
    model = network(dtype)
    gradients = random_gradients(arrays(model), 0)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.from_numpy(gradients[name].copy())
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf if max_norm is None else max_norm)
    assert optim.clip_gradients(gradients, max_norm) == pytest.approx(expected.item(), rel=tolerance)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=tolerance, atol=0, err_msg=name)


# --- the learning rate


@given(
    name=st.sampled_from(["cosine", "linear", "trapezoid", "constant"]),
    total=st.integers(1, 200),
    warmup=st.integers(0, 250),
    minimum=st.floats(0, 1),
    decay=st.none() | st.integers(0, 250),
)
@settings(max_examples=100, deadline=None)
def test_every_rate_of_a_run_is_the_trainings(name, total, warmup, minimum, decay):
    options = dict(name=name, warmup_steps=warmup, min_lr=minimum, decay_steps=decay)
    config = ScheduleConfig(**options)
    ours = [optim.learning_rate(step, total, lr=1.0, **options) for step in range(total + 1)]
    theirs = [learning_rate_of_training(step, total, 1.0, config) for step in range(total + 1)]
    assert ours == pytest.approx(theirs, rel=1e-13, abs=1e-15)


def test_a_course_by_hand():
    """Two steps of warmup to 1, then half a cosine to 0.2 in four steps: 1, 0.883, 0.6, 0.317, 0.2."""
    found = [optim.learning_rate(step, 6, lr=1.0, warmup_steps=2, min_lr=0.2) for step in range(7)]
    wave = [0.6 + 0.4 * math.cos(math.pi * quarter / 4) for quarter in range(5)]
    assert found == pytest.approx([1 / 3, 2 / 3, *wave])
