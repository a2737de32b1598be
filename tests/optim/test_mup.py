"""muP: the table of Yang et al. (2022), and the spectral condition of Yang, Simon, Bernstein (2023)."""

import math

import pytest
import torch

from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim import OptimizerConfig, ScheduleConfig, make_optimizer
from tinylm.optim.optimizer import base_rate
from tinylm.optim.scheduler import make_scheduler
from tinylm.plugins import Part

SHAPE = dict(vocab_size=32, num_layers=2, max_seq_len=16, d_ff=None)
IDS = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(0))


def network(width=32, base=32, **fields):
    torch.manual_seed(0)
    heads = fields.pop("num_heads", width // 16)
    return TransformerLM(
        ModelConfig(**SHAPE | dict(d_model=width, num_heads=heads, d_ff=3 * width, mup_base_width=base) | fields)
    )


def steps(model, optimizer, count=4):
    """Trains on one batch and returns the losses."""
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = model(IDS[:, :-1], targets=IDS[:, 1:]) / 32
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("fields", [{}, dict(norm_placement="post"), dict(bias=True, tie_embeddings=False)])
def test_at_the_base_width_weights_losses_and_groups_are_those_without_mup(name, fields):
    models = [network(base=base, **fields) for base in (None, 32)]
    optimizers = [make_optimizer(model, OptimizerConfig(name=name)) for model in models]
    keys = [[sorted(group) for group in optimizer.param_groups] for optimizer in optimizers]
    assert keys[0] == keys[1]
    losses = [steps(*each) for each in zip(models, optimizers, strict=True)]
    assert losses[0] == losses[1]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


OUTER = {"embedding.weight", "positions.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("placement", ["pre", "post", "output"])
@pytest.mark.parametrize(("name", "matrix"), [("adamw", 4.0), ("muon", 2.0)])
def test_rates_and_decays_follow_the_table_at_four_times_the_base(placement, name, matrix):
    """lr / 4 for matrices by AdamW, lr / √4 by Muon, lr / 4 for the last norm; lr times decay is the same for all."""
    fields = dict(norm_placement=placement, norm="layernorm", bias=True, tie_embeddings=False, head_bias=True)
    model = network(64, 16, positional_encoding="learned", **fields)
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.01, weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    last = "blocks.1.feedforward_norm." if placement == "post" else "final_norm."
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            each = names[parameter]
            factor = 4.0 if each.startswith(last) else matrix if parameter.ndim == 2 and each not in OUTER else 1.0
            assert group["lr"] == pytest.approx(0.01 / factor), each
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.001 * (parameter.ndim == 2)), each
            seen.add(each)
    assert seen == {*names.values()}


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_initial_weights_of_a_wide_network_are_scaled(placement):
    """Twice 1/√4 = 1/2 for the matrices, 1/4 for the last norm, all others as without muP."""
    plain, wide = (network(64, base, norm_placement=placement) for base in (None, 16))
    last = "blocks.1.feedforward_norm.weight" if placement == "post" else "final_norm.weight"
    for (name, one), (_, other) in zip(plain.named_parameters(), wide.named_parameters(), strict=True):
        factor = 0.25 if name == last else 0.5 if name.startswith("blocks.") and one.ndim == 2 else 1.0
        torch.testing.assert_close(other, one * factor, atol=0, rtol=1e-6)


def test_a_smaller_last_norm_trains_as_a_multiplier_of_the_logits():
    """Table 8's form: weight 1, lr unscaled, logits / m. Under Adam, but for eps, both are the same training."""
    folded, plain = network(64, 16).double(), network(64, 16).double()
    plain.final_norm.weight.data.fill_(1.0)
    plain.final_norm.register_forward_hook(lambda _, __, output: output / 4)
    settings = OptimizerConfig(name="adamw", lr=0.01, eps=1e-30)
    optimizers = [make_optimizer(model, settings) for model in (folded, plain)]
    for group in optimizers[1].param_groups:
        if group["params"][0] is plain.final_norm.weight:
            group["lr"] = 0.01
    losses = [steps(*each) for each in zip((folded, plain), optimizers, strict=True)]
    assert losses[0][-1] < losses[0][0] - 0.05
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_step_of_a_matrix_has_the_same_spectral_norm_at_any_width(name):
    """That is the spectral condition for rows and columns that grow together. Without muP it grows as width, or √width.

    The gradient has rank one, as that of a single token: AdamW's first step is lr times its sign, of norm lr * width.
    Newton-Schulz maps the one singular value to one between 0.68 and 1.21.
    """
    norms = {}
    for width in (32, 128, 512):
        model = network(width, 32, num_layers=1)
        matrix = model.blocks[0].attention.query.weight
        before = matrix.detach().clone()
        optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.01, weight_decay=0.0))
        matrix.grad = torch.outer(torch.randn(width), torch.randn(width))
        optimizer.step()
        norms[width] = torch.linalg.matrix_norm(matrix.detach() - before, ord=2).item()
    assert norms[128] == pytest.approx(norms[32], rel=2e-3)
    assert norms[512] == pytest.approx(norms[32], rel=2e-3)
    ratio = norms[32] / (0.01 * 32 if name == "adamw" else 0.01 * 0.2 * math.sqrt(32))
    assert ratio == pytest.approx(1, abs=2e-3) if name == "adamw" else 0.68 < ratio < 1.21


def test_the_schedule_scales_every_group_alike_and_the_base_rate_is_that_of_the_config():
    for frozen in (False, True):  # then no group has the base rate
        model = network(64, 16)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or (parameter.ndim == 2 and name.startswith("blocks.")))
        optimizer = make_optimizer(model, OptimizerConfig(lr=0.01))
        scheduler = make_scheduler(optimizer, ScheduleConfig(name="linear", warmup_steps=0, min_lr=0.002), lambda: 10)
        assert base_rate(optimizer) == pytest.approx(0.01)
        for _ in range(5):
            optimizer.step()
            scheduler.step()
        assert base_rate(optimizer) == pytest.approx(0.006)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.006 * group.get("lr_factor", 1.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="sgd"), "mup_base_width: there is no rule for the optimizer sgd; take adam or adamw or"),
        (OptimizerConfig(name="adam"), "weight_decay: with mup_base_width adam's would depend on the width; set 0"),
        (Part("torch.optim.RAdam"), "mup_base_width: there is no rule for the optimizer torch.optim.RAdam; take adam"),
    ],
)
def test_optimizers_without_a_rule_are_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(network(64, 16), config)


def test_a_scheduler_that_sets_rates_of_its_own_is_refused():
    optimizer = make_optimizer(network(64, 16), OptimizerConfig())
    with pytest.raises(ConfigError, match="ConstantLR: sets rates that mup_base_width scales; use a function"):
        make_scheduler(optimizer, Part.of(torch.optim.lr_scheduler.ConstantLR), lambda: 9)


@pytest.mark.parametrize("field", ["norm", "attention", "feedforward", "positional_encoding"])
def test_plug_ins_whose_widths_are_unknown_are_refused(field):
    with pytest.raises(ConfigError, match=rf"mup_base_width: how torch.nn.RMSNorm \({field}\) changes with the width"):
        network(64, 16, **{field: "torch.nn.RMSNorm"})
