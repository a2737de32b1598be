import copy

import numpy as np
import pytest
import torch
from torch import nn

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.muon import POLAR_EXPRESS, Muon, orthogonalize
from tinylm.optim.optimizer import OptimizerConfig, make_optimizer, parameter_groups

SMALL = ModelConfig(vocab_size=11, d_model=16, num_layers=2, num_heads=2, max_seq_len=8, norm="layernorm", bias=True)


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_orthogonalize_maps_singular_values_by_the_quintic_and_keeps_the_vectors(shape, steps):
    """U p(p(...p(S / |S|)...)) Vᵀ by SVD in float64, with p(s) = a s + b s³ + c s⁵ as published."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    s = s / (s.square().sum(-1, keepdim=True).sqrt() + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(matrices, steps), u @ torch.diag_embed(s) @ vt, atol=1e-9, rtol=0)


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32)])
def test_float32_matrices_are_orthogonalized_within_the_interval_of_the_theory(shape, narrow, monkeypatch):
    """U diag(t) Vᵀ with t in 0.7 to 1.2; in bfloat16 with rounding errors, 2^-9 a product, that are amplified."""
    if narrow:
        monkeypatch.setattr("tinylm.optim.muon.iteration_type", lambda matrices: torch.bfloat16)
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(4, *shape, dtype=torch.float64), full_matrices=False)
    sizes = torch.logspace(0, -1.5, 32, dtype=torch.float64)  # of the largest
    found = orthogonalize((u * sizes @ vt).float())
    assert found.dtype == torch.float32
    gains = u.mT @ found.double() @ vt.mT  # diag(t), were the singular vectors kept exactly
    slack = 0.05 if narrow else 1e-4
    assert 0.68 - slack < gains.diagonal(dim1=1, dim2=2).min() and gains.diagonal(dim1=1, dim2=2).max() < 1.21 + slack
    assert (gains - torch.diag_embed(gains.diagonal(dim1=1, dim2=2))).abs().max() < slack


def test_the_coefficients_of_polar_express_leave_the_smallest_error_of_any():
    """Chebyshev: no odd polynomial a s + b s³ + c s⁵ is closer to 1 if the error has 4 equal extrema of either sign.

    The first interval is [0.01, 1], each other one the range of the polynomial before.
    """
    low, high = 0.01, 1.0
    for a, b, c in POLAR_EXPRESS[:4]:
        s = np.linspace(low, high, 100_001)
        errors = a * s + b * s**3 + c * s**5 - 1
        turns = np.flatnonzero(np.diff(np.sign(np.diff(errors)))) + 1
        extrema = errors[[0, *turns, -1]]
        assert len(extrema) == 4
        np.testing.assert_allclose(
            extrema, abs(extrema[0]) * np.array([-1, 1, -1, 1]), rtol=0, atol=2e-3
        )  # rounded to 4 digits: 5e-5 (s + s³ + s⁵)
        low, high = errors.min() + 1, errors.max() + 1
    assert POLAR_EXPRESS[4] == (15 / 8, -10 / 8, 3 / 8)  # the limit: error zero at 1, with its first two derivatives


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_polar_express_maps_singular_values_below_one_by_its_polynomials(shape, steps):
    """The polynomials of the steps, applied by SVD to the singular values S / (√1.01 |S²|^½)."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    s = s / (1.01 * s.square().square().sum(-1, keepdim=True).sqrt()).sqrt()
    for a, b, c in (POLAR_EXPRESS + POLAR_EXPRESS[-1:] * 2)[:steps]:
        s = a * s + b * s**3 + c * s**5
    found = orthogonalize(matrices, steps, coefficients="polar_express")
    torch.testing.assert_close(found, u @ torch.diag_embed(s) @ vt, atol=2e-6, rtol=0)  # 1e-7 keeps zeros finite


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("smallest", [1.0, 0.1, 0.03])
def test_four_steps_of_polar_express_end_near_one(smallest, narrow):
    """Singular values from 3% of the largest, after division by the bound at least 1%, to 0.99 to 1.01."""
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(4, 32, 96, dtype=torch.float64), full_matrices=False)
    sizes = torch.logspace(0, np.log10(smallest), 32, dtype=torch.float64)
    dtype = torch.bfloat16 if narrow else torch.float32
    found = orthogonalize((u * sizes @ vt).float(), 4, dtype, "polar_express")
    gains = u.mT @ found.double() @ vt.mT
    torch.testing.assert_close(gains, torch.eye(32).double().expand(4, -1, -1), atol=0.1 if narrow else 0.015, rtol=0)


@pytest.mark.parametrize("steps", [3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_polar_express_of_rank_one_and_of_zero(dtype, steps):
    """Where the bound is exact, rounding must not carry the largest singular value out of the interval."""
    torch.manual_seed(0)
    left, right = torch.randn(8, 32, 1), torch.randn(8, 1, 48)
    found = orthogonalize(left @ right, steps, dtype, "polar_express")
    values = torch.linalg.svdvals(found)
    interval, rounding = 0.27 if steps == 3 else 0.013, 0.001 if dtype == torch.float32 else 0.12
    assert ((values[:, 0] - 1).abs() < interval + rounding).all()
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 6), steps, dtype, "polar_express"), torch.zeros(2, 4, 6))


def test_a_learning_rate_in_a_tensor_gives_the_same_step():
    models, rates = [], (0.02, torch.tensor(0.02, dtype=torch.float64))
    for rate in rates:
        torch.manual_seed(0)
        models.append(TransformerLM(SMALL).double())
        optimizer = make_optimizer(models[-1], OptimizerConfig(name="muon"))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(3):
            for parameter in models[-1].parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), atol=1e-14, rtol=0)


def test_a_parameter_without_a_gradient_is_left_alone():
    torch.manual_seed(0)
    model = TransformerLM(SMALL)
    optimizer = make_optimizer(model, OptimizerConfig(name="muon"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) if number % 2 else None
    optimizer.step()
    changed = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert changed == [bool(number % 2) for number in range(len(before))]


def test_muon_step_matches_the_formula():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 10, dtype=torch.float64))
    group = {"params": [weight], "weight_decay": 0.1, "name": "muon"}
    optimizer = Muon([group], lr=0.02, momentum=0.9, betas=(0.9, 0.95), eps=1e-8)
    expected, mean = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        mean = 0.9 * mean + 0.1 * weight.grad
        nesterov = 0.9 * mean + 0.1 * weight.grad
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 10**0.5 * orthogonalize(nesterov[None])[0]
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-12, rtol=0)


def test_normuon_keeps_the_norm_of_a_matrix_and_evens_out_its_rows():
    """The first step divides each row by its own norm; the second by the root of 0.09 of its square + 0.1 of the next.

    Rows without a gradient stay as they are.
    """
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
    group = {"params": [weight], "weight_decay": 0.0, "name": "muon"}
    optimizer = Muon([group], lr=1.0, momentum=0.0, betas=(0.9, 0.95), eps=1e-8, neuron_beta=0.9)
    before = torch.zeros(6, 10, dtype=torch.float64)
    means = torch.zeros(6, dtype=torch.float64)
    for _ in range(2):
        weight.grad = torch.randn(6, 10, dtype=torch.float64) * torch.tensor([0.0, 1, 1, 2, 5, 9])[:, None]
        plain = orthogonalize(weight.grad[None])[0]
        means = 0.9 * means + 0.1 * plain.norm(dim=1) ** 2
        rows = torch.stack([row / mean**0.5 if mean else row for row, mean in zip(plain, means, strict=True)])
        expected = rows * plain.norm() / rows.norm()
        optimizer.step()
        torch.testing.assert_close((before - weight.detach()) / (0.2 * 10**0.5), expected, atol=1e-9, rtol=0)
        before = weight.detach().clone()
    assert not weight[0].any()


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd"])
def test_matrices_added_later_by_a_callback_are_updated_like_those_of_the_start(name):
    """Lightning's `unfreeze_and_add_param_group` gives parameters and a learning rate, and nothing else."""
    torch.manual_seed(0)
    late = TransformerLM(SMALL)
    early = copy.deepcopy(late)
    settings = OptimizerConfig(name=name, lr=0.01, weight_decay=0.3)
    late.blocks[0].requires_grad_(False)
    late.embedding.requires_grad_(False)
    optimizers = [make_optimizer(model, settings) for model in (early, late)]
    thawed = [*late.blocks[0].parameters(), late.embedding.weight]
    optimizers[1].add_param_group({"params": [each.requires_grad_() for each in thawed], "lr": 0.01})
    for one, other in zip(early.parameters(), late.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for (key, one), other in zip(early.named_parameters(), late.parameters(), strict=True):
        if one.ndim == 2:  # an added norm decays, too
            torch.testing.assert_close(other, one, msg=key)


@pytest.mark.parametrize(("dtype", "coarse"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_the_config_chooses_the_steps_and_the_type_of_muons_iteration(dtype, coarse):
    """One step from zero momenta: U p(p(p(S))) Vᵀ of the gradients, within 2^-9 a product in bfloat16."""
    torch.manual_seed(0)
    model = TransformerLM(SMALL)
    weight = model.blocks[0].feedforward.input.weight
    before = weight.detach().clone()
    settings = OptimizerConfig(name="muon", lr=1.0, weight_decay=0.0, ns_steps=3, ns_dtype=dtype)
    optimizer = make_optimizer(model, settings)
    weight.grad = torch.randn_like(weight)
    expected = orthogonalize(weight.grad.double()[None], 3)[0]
    optimizer.step()
    error = ((before - weight).double() / (0.2 * max(weight.shape) ** 0.5) - expected).abs().max()
    assert (1e-4 < error < 0.03) if coarse else error < 1e-5


def test_muon_adamw_part_matches_torch_adamw():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 4, dtype=torch.float64)), torch.nn.Parameter(torch.randn(4).double())]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    decays = (0.1, 0.0)
    groups = [{"params": [p], "weight_decay": w, "name": "rest"} for p, w in zip(ours, decays, strict=True)]
    muon = Muon(groups, lr=0.01, momentum=0.95, betas=(0.8, 0.9), eps=1e-6)
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": w} for p, w in zip(theirs, decays, strict=True)],
        lr=0.01, betas=(0.8, 0.9), eps=1e-6,
    )  # fmt: skip
    for _ in range(20):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_muon_state_survives_a_checkpoint_bit_for_bit():
    torch.manual_seed(0)
    settings = OptimizerConfig(name="muon", neuron_beta=0.9)
    models = [TransformerLM(SMALL) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, settings) for model in models]
    ids = torch.randint(0, 11, (2, 8))

    def steps(which: int, count: int) -> None:
        for _ in range(count):
            optimizers[which].zero_grad()
            models[which](ids).square().mean().backward()
            optimizers[which].step()

    steps(0, 4)
    steps(1, 2)
    stored = optimizers[1].state_dict()
    optimizers[1] = make_optimizer(models[1], settings)
    optimizers[1].load_state_dict(stored)
    steps(1, 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_is_in_exactly_one_group_and_vectors_never_decay(name, tie):
    model = TransformerLM(ModelConfig(**{**SMALL.to_dict(), "tie_embeddings": tie}))
    groups = parameter_groups(model, OptimizerConfig(name=name, weight_decay=0.3))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0.0)
            if group["name"] == "muon":
                assert parameter.ndim == 2 and parameter is not model.embedding.weight


def test_muon_takes_the_matrices_of_a_block_and_leaves_its_tables_to_adamw():
    model = TransformerLM(SMALL)
    model.blocks[0].attention.position_bias = nn.Embedding(8, 2)
    groups = {group["name"]: group["params"] for group in parameter_groups(model, OptimizerConfig(name="muon"))}
    decaying = {"embedding.weight", "blocks.0.attention.position_bias.weight"}
    expected = {name: each for name, each in model.named_parameters() if each.ndim == 2 and name not in decaying}
    assert {*groups["muon"]} == {*expected.values()}
    assert {*groups["decay"]} == {dict(model.named_parameters())[name] for name in decaying}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_every_optimizer_fits_one_batch(name):
    torch.manual_seed(0)
    model = TransformerLM(SMALL)
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.3 if name == "sgd" else 0.02, weight_decay=0.0))
    ids = torch.randint(0, 11, (1, 8))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 < 2 < losses[0]  # ln 11 = 2.4 at the start


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, "lr must be positive, got 0.0"),
        ("weight_decay", -0.1, "weight_decay must not be negative"),
        ("betas", (0.9, 1.0), r"betas must be in \[0, 1\), got 1.0"),
        ("betas", (0.9,), "betas must have 2 values"),
        ("momentum", 1.0, "momentum must be in"),
        ("name", "mouon", "did you mean 'muon'"),
        ("ns_steps", 0, "ns_steps must be at least 1, got 0"),
        ("neuron_beta", 1.0, "neuron_beta must be in"),
        ("neuron_beta", 0.9, "neuron_beta: of muon only; leave it out with optimizer adamw"),
        ("ns_steps", 4, "ns_steps: of muon only; leave it out with optimizer adamw"),
        ("ns_dtype", "bfloat16", "ns_dtype: of muon only; leave it out with optimizer adamw"),
        ("ns_dtype", "float16", "ns_dtype"),
        ("ns_coefficients", "polar_express", "ns_coefficients: of muon only; leave it out with optimizer adamw"),
        ("ns_coefficients", "polar", "ns_coefficients must be one of jordan, polar_express, got 'polar'"),
    ],
)
def test_optimizer_config_refuses(field, value, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**{field: value})
