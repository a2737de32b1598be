"""LayerNorm, RMSNorm and the tuned RMSNorm against their formulas in float64 NumPy."""

import numpy as np
import pytest
import torch
from torch.nn import LayerNorm

from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import ModelConfig
from tinylm.model.normalization import RMSNorm, make_norm

D, EPS = 24, 1e-3


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias


def rms_norm(x, weight, bias):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def make(kind):
    norms = {"layernorm": LayerNorm(D, EPS, bias=True), "layernorm-nobias": LayerNorm(D, EPS, bias=False),
             "rmsnorm": RMSNorm(D, EPS), "rmsnorm-tuned": RMSNorm(D, EPS)}  # fmt: skip
    tune_for_training(norms["rmsnorm-tuned"])
    return norms[kind]


def norm_and_expected(kind, dtype):
    """A norm with random weights, an input whose vectors have scales from 0.01 to 100, and the expected output."""
    rng = np.random.default_rng(0)
    x = torch.tensor((rng.standard_normal((5, 3, D)) + 0.5) * np.array([0.01, 1.0, 100.0])[:, None], dtype=dtype)
    norm = make(kind).to(dtype)
    for weight in norm.parameters():
        weight.data = torch.tensor(rng.standard_normal(D) + 1.0, dtype=dtype)
    weight, bias = (
        np.zeros(D) if p is None else p.detach().double().numpy() for p in (norm.weight, getattr(norm, "bias", None))
    )
    formula = rms_norm if kind.startswith("rmsnorm") else layer_norm
    return norm, x, torch.from_numpy(formula(x.double().numpy(), weight, bias))


every_kind = pytest.mark.parametrize("kind", ["layernorm", "layernorm-nobias", "rmsnorm", "rmsnorm-tuned"])


@every_kind
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_norm_matches_its_formula(kind, dtype, atol):
    norm, x, expected = norm_and_expected(kind, dtype)
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@every_kind
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=str)
def test_half_precision_input_is_normalized_in_float32(kind, dtype, bits):
    """So the error is one rounding of the result, plus float32's, and squares do not overflow."""
    norm, x, expected = norm_and_expected(kind, dtype)
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-bits, atol=1e-5)


@every_kind
def test_gradients_match_finite_differences(kind):
    norm, x, _ = norm_and_expected(kind, torch.float64)
    inputs = [x[:, :2].clone().requires_grad_(), *norm.parameters()]

    def function(x, weight, bias=None):
        values = {"weight": weight} | ({} if bias is None else {"bias": bias})
        return torch.func.functional_call(norm, values, (x,))

    assert torch.autograd.gradcheck(function, inputs)


@every_kind
def test_second_derivatives_match_finite_differences(kind):
    """The hand-written gradient is differentiable itself, as gradient penalties and Hessians require."""
    norm, x, _ = norm_and_expected(kind, torch.float64)
    assert torch.autograd.gradgradcheck(norm, (x[:, 1].clone().requires_grad_(),))


def test_layer_norm_zeroes_a_constant_vector_and_rms_norm_keeps_it():
    """LayerNorm subtracts the mean. RMSNorm does not: 3 / sqrt(9 + eps)."""
    x = torch.full((1, D), 3.0, dtype=torch.float64)
    torch.testing.assert_close(LayerNorm(D, EPS, bias=False).double()(x), torch.zeros_like(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(RMSNorm(D, EPS).double()(x), x / (9 + EPS) ** 0.5, rtol=0, atol=1e-12)


def test_zero_vectors_stay_zero():
    for norm in (LayerNorm(D, EPS, bias=False), RMSNorm(D, EPS)):
        x = torch.zeros(2, D, requires_grad=True)
        out = norm(x)
        out.sum().backward()
        assert torch.equal(out, torch.zeros(2, D))
        assert x.grad.isfinite().all()


def test_make_norm_follows_the_config():
    def kind(**changes):
        norm = make_norm(ModelConfig(vocab_size=2, d_model=8, num_heads=2, norm_eps=EPS, **changes))
        return type(norm), sorted(name for name, _ in norm.named_parameters()), norm.eps

    assert kind(norm="rmsnorm", bias=True) == (RMSNorm, ["weight"], EPS)
    assert kind(norm="layernorm", bias=False) == (LayerNorm, ["weight"], EPS)
    assert kind(norm="layernorm", bias=True) == (LayerNorm, ["bias", "weight"], EPS)
