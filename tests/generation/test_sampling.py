"""Each filter keeps the set that its definition says, and tokens are drawn with the probabilities that are left."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinylm.errors import ConfigError, NumericError
from tinylm.generation import SamplingConfig
from tinylm.generation.sampling import choose, filtered, min_p, top_k, top_p

few = settings(max_examples=60, deadline=None)
logit_lists = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12)
distinct = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12, unique=True)
fractions = st.floats(0.01, 1)


def kept(filtered: torch.Tensor, logits: list[float]) -> set[int]:
    """Which tokens a filter kept; those have their logits still, the others -inf."""
    assert all(new in (old, -math.inf) for new, old in zip(filtered.tolist(), logits, strict=True))
    return {i for i, value in enumerate(filtered.tolist()) if value > -math.inf}


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


# --- filters


@few
@given(logit_lists, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_their_equals(logits, k):
    smallest = sorted(logits, reverse=True)[: min(k, len(logits))][-1]
    assert kept(top_k(torch.tensor(logits), k), logits) == {i for i, logit in enumerate(logits) if logit >= smallest}


@few
@given(distinct, fractions)
def test_top_p_keeps_the_smallest_set_of_likeliest_tokens_with_that_probability(logits, p):
    probabilities, expected, total = softmax(logits), set(), 0.0
    for i in sorted(range(len(logits)), key=lambda i: -logits[i]):
        assume(not expected or abs(total - p) > 1e-9)  # where rounding decides
        if expected and total >= p:
            break
        expected.add(i)
        total += probabilities[i]
    assert kept(top_p(torch.tensor(logits, dtype=torch.float64), p), logits) == expected


@few
@given(logit_lists, fractions)
def test_min_p_keeps_what_is_at_least_that_fraction_as_likely_as_the_likeliest(logits, p):
    probabilities = softmax(logits)
    assume(all(abs(q / max(probabilities) - p) > 1e-9 for q in probabilities))
    expected = {i for i, q in enumerate(probabilities) if q >= p * max(probabilities)}
    assert kept(min_p(torch.tensor(logits, dtype=torch.float64), p), logits) == expected


@pytest.mark.parametrize("keep", [lambda x: top_k(x, 3), lambda x: top_p(x, 0.7), lambda x: min_p(x, 0.3)])
def test_filters_treat_every_row_alone(keep):
    logits = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.stack([keep(row) for row in rows]) for rows in logits])
    assert torch.equal(keep(logits), expected)


def test_a_k_above_the_vocabulary_and_a_p_of_one_keep_all():
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    for same in (top_k(logits, 10**9), top_p(logits, 1.0), min_p(logits, 1e-30)):
        assert torch.equal(same, logits)


def test_of_equal_logits_top_p_keeps_as_many_as_it_takes():
    assert torch.isfinite(top_p(torch.zeros(4), 0.5)).sum() == 2
    assert torch.isfinite(top_p(torch.zeros(4), 0.51)).sum() == 3


def test_filters_compose_in_the_order_temperature_top_k_top_p_min_p():
    def keeps(probabilities, **options):
        found = filtered(torch.tensor(probabilities, dtype=torch.float64).log(), SamplingConfig(**options))
        return torch.isfinite(found).tolist()

    # of 0.5 + 0.3 + 0.15 + 0.05, p = 0.6 takes two; of the first two alone, 0.625 + 0.375, the first
    assert keeps([0.5, 0.3, 0.15, 0.05], top_p=0.6) == [True, True, False, False]
    assert keeps([0.5, 0.3, 0.15, 0.05], top_p=0.6, top_k=2) == [True, False, False, False]
    # at temperature 1/2 probabilities are squared: 0.25 : 0.09 = 0.36 < 0.5 <= 0.6
    assert keeps([0.5, 0.3, 0.2], min_p=0.5) == [True, True, False]
    assert keeps([0.5, 0.3, 0.2], min_p=0.5, temperature=0.5) == [True, False, False]


@few
@given(logit_lists, st.floats(0.1, 10))
def test_the_temperature_divides_the_logits(logits, temperature):
    found = filtered(torch.tensor(logits, dtype=torch.float64), SamplingConfig(temperature=temperature))
    assert found.softmax(-1).tolist() == pytest.approx(softmax([logit / temperature for logit in logits]), abs=1e-12)


# --- drawing


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.7), dict(temperature=2.0, top_k=4), dict(top_p=0.8), dict(min_p=0.2)], ids=str
)
def test_draws_have_the_probabilities_of_the_softmax(options):
    logits = [1.5, -0.5, 0.25, 2.0, -1.0, 0.75, 0.0, -2.0]
    config = SamplingConfig(**options)
    draws = choose(torch.tensor(logits).expand(40_000, -1), config, torch.Generator().manual_seed(0))
    counts = draws.bincount(minlength=8).tolist()

    scaled = [logit / config.temperature for logit in logits]
    order = sorted(range(8), key=lambda i: -scaled[i])
    candidates = {3, 0, 5, 2} if "top_k" in options else set(range(8))
    if "top_p" in options:  # 0.8 is passed by the third, at 0.485 + 0.294 + 0.139
        candidates = set(order[: next(n for n in range(1, 9) if sum(sorted(softmax(scaled))[-n:]) >= 0.8)])
    if "min_p" in options:
        candidates = {i for i in range(8) if scaled[i] >= max(scaled) + math.log(0.2)}
    assert {i for i in range(8) if counts[i]} <= candidates
    total = sum(math.exp(scaled[i]) for i in candidates)
    expected = {i: 40_000 * math.exp(scaled[i]) / total for i in candidates}
    statistic = sum((counts[i] - mean) ** 2 / mean for i, mean in expected.items())
    freedom = torch.tensor((len(candidates) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)) > 1e-6


def test_each_row_is_drawn_from_its_own_distribution():
    logits = torch.full((5, 5), -100.0).fill_diagonal_(100.0)
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, SamplingConfig(), generator).tolist() == [0, 1, 2, 3, 4]
    assert choose(logits.bfloat16(), SamplingConfig(), generator).tolist() == [0, 1, 2, 3, 4]


@few
@given(distinct)
def test_temperature_zero_is_the_argmax_whatever_the_filters(logits):
    generator = torch.Generator()
    before = generator.get_state()
    for options in ({}, dict(top_k=2), dict(top_p=0.1, min_p=0.9)):
        token = choose(torch.tensor([logits]), SamplingConfig(temperature=0, **options), generator)
        assert token.tolist() == [logits.index(max(logits))]
    assert torch.equal(generator.get_state(), before)  # nothing is drawn


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-60, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature):
    logits = torch.tensor([[1.0, 3.0, -2.0], [-5.0, -7.0, -6.0]])
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, SamplingConfig(temperature=temperature), generator).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_a_numeric_error(temperature):
    with pytest.raises(NumericError, match=r"not (a )?finite"):
        choose(torch.full((1, 4), torch.nan), SamplingConfig(temperature=temperature), torch.Generator())


# --- options

NAN, INFINITY = float("nan"), float("inf")
REFUSED = [
    *[("max_new_tokens", value, "at least 1") for value in (0, -1)],
    *[("temperature", value, r"0 \(greedy\) or positive") for value in (-0.1, NAN, INFINITY, -INFINITY)],
    *[("top_k", value, "at least 1") for value in (0, -3)],
    *[(name, value, r"in \(0, 1\]") for name in ("top_p", "min_p") for value in (0.0, -0.5, 1.01, NAN, INFINITY)],
]
WRONG_TYPES = [
    ("max_new_tokens", INFINITY), ("max_new_tokens", NAN), ("top_k", NAN),
    ("max_new_tokens", 2.5), ("max_new_tokens", "5"), ("temperature", "warm"),
    ("top_k", 2.5), ("top_p", "0.9"), ("seed", 1.5), ("seed", 1 << 64), ("seed", -(1 << 63) - 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "rule"), REFUSED)
def test_a_value_without_meaning_is_refused(name, value, rule):
    with pytest.raises(ConfigError, match=rf"^{name} must be {rule}, got {value}$"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_value_of_another_kind_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be .*{value}"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(
    "options",
    [{}, dict(temperature=0), dict(top_k=1, top_p=1, min_p=1), dict(top_k=10**9), dict(seed=0), dict(max_new_tokens=1)],
)
def test_values_at_the_bounds_are_allowed(options):
    SamplingConfig(**options)
