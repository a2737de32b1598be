"""Positional encodings: tables against the formulas of the papers, rotations against their geometry."""

import math

import mpmath
import pytest
import torch

from tests.strategies import random_ids, random_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.positional import PositionTable, rotary_table, rotate, sinusoidal_table

EXACT = dict(rtol=0.0, atol=1e-10)


def test_sinusoidal_table_matches_vaswanis_formula():
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(pos / 10000^(2i/D))"""
    D = 6
    expected = [
        [(math.sin, math.cos)[column % 2](p / 10000.0 ** (2 * (column // 2) / D)) for column in range(D)]
        for p in range(50)
    ]
    torch.testing.assert_close(sinusoidal_table(50, D), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


def test_sinusoidal_model_adds_the_table_to_the_embeddings():
    """With blocks that add zero, the logits are those of norm(embedding + table)."""
    config = ModelConfig(
        vocab_size=7, d_model=6, num_layers=1, num_heads=1, max_seq_len=5, positional_encoding="sinusoidal",
        norm_placement="pre", norm="rmsnorm",
    )  # fmt: skip
    model, ids = random_model(config), random_ids(config)
    for block in model.blocks:
        block.attention.output.weight.data.zero_()
        block.feedforward.output.weight.data.zero_()
    x = model.embedding.weight[ids] + sinusoidal_table(5, 6)
    expected = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * model.final_norm.weight
    torch.testing.assert_close(model(ids), model.head(expected), **EXACT)


def test_rotation_of_one_pair_matches_hand_calculation():
    """A two-dimensional head turns by one radian per position: (1, 0) -> (cos p, sin p), (0, 1) -> (-sin p, cos p)."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).expand(1, 4, 2, 2)  # the two heads
    expected = [[[math.cos(p), math.sin(p)], [-math.sin(p), math.cos(p)]] for p in range(4)]
    found = rotate(x, rotary_table(4, 2, theta=10000.0))
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-14)


def test_rotation_pairs_coordinates_half_a_head_apart():
    """At position 1 with theta 100 and E = 4, the pair (0, 2) turns by 1 and (1, 3) by 100^(-1/2) = 0.1 radians."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 4)
    c, s, C, S = math.cos(1.0), math.sin(1.0), math.cos(0.1), math.sin(0.1)
    expected = torch.tensor([c - 3 * s, 2 * C - 4 * S, 3 * c + s, 4 * C + 2 * S], dtype=torch.float64)
    found = rotate(x, rotary_table(2, 4, theta=100.0)[:, 1:])
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-14)


def random_heads(length, width, seed):
    return torch.randn(2, length, 3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [2, 6, 64])
def test_rotation_keeps_norms(width):
    x = random_heads(200, width, seed=0)
    turned = rotate(x, rotary_table(200, width, 10000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), **EXACT)


@pytest.mark.parametrize("width", [2, 6, 64])
def test_rotated_products_depend_only_on_the_distance(width):
    """With one query and one key at all positions, the (T, T) products are constant along every diagonal."""
    T, table = 40, rotary_table(40, width, 10000.0)
    query, key = (rotate(random_heads(1, width, seed).expand(-1, T, -1, -1), table) for seed in (1, 2))
    products = torch.einsum("bthe,bshe->bhts", query, key)
    torch.testing.assert_close(products[..., 1:, 1:], products[..., :-1, :-1], **EXACT)
    assert (products[..., 0, 0] - products[..., 1, 0]).abs().min() > 1e-3  # but they do depend on it


@pytest.mark.parametrize("position", [1, 4095, 100_000])
def test_tables_are_exact_to_float64_rounding_at_large_positions(position):
    """Against 50 digits. An angle a is rounded three times, so the error of its sine is at most 2 a 2⁻⁵² + 2⁻⁵²."""
    E, theta = 8, 10000.0
    with mpmath.workdps(50):
        angles = [position * mpmath.power(theta, mpmath.mpf(-2 * i) / E) for i in range(E // 2)]
        cosines, sines = [float(mpmath.cos(a)) for a in angles], [float(mpmath.sin(a)) for a in angles]
        bound = (torch.tensor([float(a) for a in angles], dtype=torch.float64) * 2 + 1) * 2.0**-52
    cos, sin = rotary_table(position + 1, E, theta)[:, -1]
    sinusoidal = sinusoidal_table(position + 1, E)[-1]
    expected_cos, expected_sin = (torch.tensor(x, dtype=torch.float64) for x in (cosines, sines))
    for found, expected in (
        (cos, expected_cos),
        (sin, expected_sin),
        (sinusoidal[0::2], expected_sin),
        (sinusoidal[1::2], expected_cos),
    ):
        assert ((found - expected).abs() <= bound).all()


def test_tables_are_cast_from_float64_after_any_conversion_of_the_model():
    """A bfloat16 model gets a float32 table, a float64 model the exact one, even if it was bfloat16 before."""
    exact = rotary_table(5000, 8, 10000.0)
    table = PositionTable(exact)
    for through in (torch.bfloat16, torch.float32, torch.float64):
        table.to(through)
        for dtype, cast in (
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ):
            found = table(torch.zeros(1, dtype=dtype))
            assert found.dtype == cast
            assert torch.equal(found, exact.to(cast))
    assert not table.state_dict()


def test_rotation_of_bfloat16_rounds_only_its_result():
    T, E = 4096, 8
    x = random_heads(T, E, seed=3).bfloat16()
    found = rotate(x, PositionTable(rotary_table(T, E, 10000.0))(x))
    exact = rotate(x.double(), rotary_table(T, E, 10000.0))
    assert found.dtype == torch.bfloat16
    # half a unit in the last of eight bits, plus float32's errors of angles and sums
    torch.testing.assert_close(found.double(), exact, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_models_built_on_the_meta_device_have_tables(positions):
    config = ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, positional_encoding=positions)
    model, ids = random_model(config), random_ids(config)
    with torch.device("meta"):
        empty = type(model)(config)
    empty.to_empty(device="cpu").double().eval().load_state_dict(model.state_dict())
    torch.testing.assert_close(empty(ids), model(ids), rtol=0, atol=0)


@pytest.mark.parametrize("positional_encoding", ["rotary", "sinusoidal"])
def test_a_model_that_has_generated_can_be_trained(positional_encoding):
    model = TransformerLM(
        ModelConfig(vocab_size=5, d_model=8, num_layers=1, num_heads=2, positional_encoding=positional_encoding)
    )
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()
    assert model.embedding.weight.grad is not None
