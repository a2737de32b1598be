"""Each filter keeps the tokens of its definition, and tokens are drawn with the remaining probabilities."""

import math
import re
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TypicalLogitsWarper

from tinylm.errors import ConfigError, NumericError
from tinylm.generation import SamplingConfig
from tinylm.generation.sampling import (
    Random,
    adjusted,
    choose,
    draw,
    filtered,
    min_p,
    random_times,
    token_counts,
    top_k,
    top_p,
    typical,
)

few = settings(max_examples=60, deadline=None)
NAN, INFINITY = float("nan"), float("inf")
logit_lists = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12)
distinct = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12, unique=True)
fractions = st.floats(0.01, 1)


def kept(filtered: torch.Tensor, logits: list[float]) -> set[int]:
    """The tokens kept by a filter: their logits are unchanged, the others are -inf."""
    assert all(new in (old, -math.inf) for new, old in zip(filtered.tolist(), logits, strict=True))
    return {i for i, value in enumerate(filtered.tolist()) if value > -math.inf}


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


# --- filters


@few
@given(logit_lists, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_ties(logits, k):
    smallest = sorted(logits, reverse=True)[: min(k, len(logits))][-1]
    assert kept(top_k(torch.tensor(logits), k), logits) == {i for i, logit in enumerate(logits) if logit >= smallest}


@few
@given(distinct, fractions)
def test_top_p_keeps_the_fewest_most_likely_tokens_of_probability_p(logits, p):
    probabilities, expected, total = softmax(logits), set(), 0.0
    for i in sorted(range(len(logits)), key=lambda i: -logits[i]):
        assume(not expected or abs(total - p) > 1e-9)  # not decided by rounding
        if expected and total >= p:
            break
        expected.add(i)
        total += probabilities[i]
    assert kept(top_p(torch.tensor(logits, dtype=torch.float64), p), logits) == expected


@few
@given(logit_lists, fractions)
def test_min_p_keeps_tokens_of_at_least_p_times_the_largest_probability(logits, p):
    probabilities = softmax(logits)
    assume(all(abs(q / max(probabilities) - p) > 1e-9 for q in probabilities))
    expected = {i for i, q in enumerate(probabilities) if q >= p * max(probabilities)}
    assert kept(min_p(torch.tensor(logits, dtype=torch.float64), p), logits) == expected


@few
@given(distinct, st.floats(0.01, 0.999))
def test_typical_matches_its_definition_and_transformers(logits, p):
    rows = torch.tensor([logits], dtype=torch.float64)
    probabilities = softmax(logits)
    entropy = -sum(q * math.log(q) for q in probabilities)
    nearness = sorted(range(len(logits)), key=lambda i: abs(-math.log(probabilities[i]) - entropy))
    distances = [abs(-math.log(probabilities[i]) - entropy) for i in nearness]
    assume(all(b - a > 1e-9 for a, b in pairwise(distances)))  # not decided by rounding
    sums = list(accumulate(probabilities[i] for i in nearness))
    assume(all(abs(total - p) > 1e-9 for total in sums))
    expected = {i for i, before in zip(nearness, [0.0, *sums], strict=False) if before < p}
    assert kept(typical(rows, p)[0], logits) == expected
    theirs = TypicalLogitsWarper(mass=p)(None, rows.clone())
    assert kept(theirs[0], logits) == expected


@pytest.mark.parametrize(
    "keep", [lambda x: top_k(x, 3), lambda x: top_p(x, 0.7), lambda x: min_p(x, 0.3), lambda x: typical(x, 0.6)]
)
def test_filters_treat_rows_independently(keep):
    logits = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.stack([keep(row) for row in rows]) for rows in logits])
    assert torch.equal(keep(logits), expected)


def test_extreme_values_keep_all_tokens():
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    for same in (top_k(logits, 10**9), top_p(logits, 1.0), min_p(logits, 1e-30)):
        assert torch.equal(same, logits)


def test_top_p_keeps_only_as_many_equal_logits_as_needed():
    assert torch.isfinite(top_p(torch.zeros(4), 0.5)).sum() == 2
    assert torch.isfinite(top_p(torch.zeros(4), 0.51)).sum() == 3


def test_filters_compose_in_the_order_temperature_top_k_top_p_min_p():
    def keeps(probabilities, **options):
        found = filtered(torch.tensor(probabilities, dtype=torch.float64).log(), SamplingConfig(**options))
        return torch.isfinite(found).tolist()

    # p = 0.6 keeps two of 0.5, 0.3, 0.15, 0.05; after top-k only one of 0.625, 0.375
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


# --- penalties and biases

texts = st.lists(st.integers(0, 4), max_size=8)


def counts_of(ids: list[int]) -> torch.Tensor:
    return torch.tensor([[ids.count(token) for token in range(5)]])


@few
@given(st.lists(st.floats(-9, 9), min_size=5, max_size=5), texts, texts, st.floats(0.1, 3))
def test_the_repetition_penalty_matches_transformers(logits, prompt, generated, penalty):
    rows = torch.tensor([logits], dtype=torch.float64)
    found = adjusted(rows, counts_of(prompt), counts_of(generated), SamplingConfig(repetition_penalty=penalty))
    if prompt + generated:
        ids = torch.tensor([prompt + generated])
        assert torch.allclose(found, RepetitionPenaltyLogitsProcessor(penalty)(ids, rows.clone()), rtol=1e-12)
    else:
        assert torch.equal(found, rows)


@few
@given(texts, texts, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_penalties_ignore_the_prompt(prompt, generated, presence, frequency):
    config = SamplingConfig(presence_penalty=presence, frequency_penalty=frequency)
    found = adjusted(torch.zeros(1, 5, dtype=torch.float64), counts_of(prompt), counts_of(generated), config)
    expected = [-(presence * (token in generated)) - frequency * generated.count(token) for token in range(5)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_biases_are_added_and_banned_tokens_excluded():
    nothing = torch.zeros(1, 5, dtype=torch.int64)
    logits = torch.arange(5.0)[None]
    config = SamplingConfig(logit_bias={1: 2.5, 4: -9}, banned_tokens=[3, 0])
    assert adjusted(logits, nothing, nothing, config).tolist() == [[-math.inf, 3.5, 2.0, -math.inf, -5.0]]
    assert logits.tolist() == [[0, 1, 2, 3, 4]]  # the input is not modified
    assert choose(adjusted(logits, nothing, nothing, config), SamplingConfig(temperature=0), [], []).tolist() == [1]


def test_ids_outside_the_vocabulary_are_refused():
    SamplingConfig(logit_bias={4: 1.0}, banned_tokens=[0]).check_tokens(5, stops=(4,))
    with pytest.raises(ConfigError, match="logit_bias must be of ids below 5, got 5"):
        SamplingConfig(logit_bias={5: 1.0}).check_tokens(5, stops=(4,))
    with pytest.raises(ConfigError, match="banned_tokens must be of ids below 5, got -1"):
        SamplingConfig(banned_tokens=[-1]).check_tokens(5, stops=(4,))
    with pytest.raises(ConfigError, match="banned_tokens must be fewer than all tokens"):
        SamplingConfig(banned_tokens=[0, 1]).check_tokens(2, stops=())
    with pytest.raises(ConfigError, match="banned_tokens must be fewer than all tokens but the end-of-text token"):
        SamplingConfig(banned_tokens=[0, 1], min_new_tokens=1).check_tokens(3, stops=(2,))
    SamplingConfig(banned_tokens=[0, 1]).check_tokens(3, stops=(2,))


# --- drawing


@pytest.mark.parametrize(
    "options",
    [{}, dict(temperature=0.7), dict(temperature=2.0, top_k=4), dict(top_p=0.8), dict(min_p=0.2), dict(typical_p=0.5)],
    ids=str,
)
def test_draws_follow_the_filtered_softmax(options):
    logits = [1.5, -0.5, 0.25, 2.0, -1.0, 0.75, 0.0, -2.0]
    config = SamplingConfig(**options)
    draws = choose(torch.tensor(logits).expand(40_000, -1), config, [Random(0)] * 40_000, range(40_000))
    counts = draws.bincount(minlength=8).tolist()

    scaled = [logit / config.temperature for logit in logits]
    order = sorted(range(8), key=lambda i: -scaled[i])
    candidates = {3, 0, 5, 2} if "top_k" in options else set(range(8))
    if "top_p" in options:  # the third token exceeds 0.8, at 0.485 + 0.294 + 0.139
        candidates = set(order[: next(n for n in range(1, 9) if sum(sorted(softmax(scaled))[-n:]) >= 0.8)])
    if "min_p" in options:
        candidates = {i for i in range(8) if scaled[i] >= max(scaled) + math.log(0.2)}
    if "typical_p" in options:
        candidates = kept(typical(torch.tensor(logits), 0.5), logits)
    assert {i for i in range(8) if counts[i]} <= candidates
    total = sum(math.exp(scaled[i]) for i in candidates)
    expected = {i: 40_000 * math.exp(scaled[i]) / total for i in candidates}
    statistic = sum((counts[i] - mean) ** 2 / mean for i, mean in expected.items())
    freedom = torch.tensor((len(candidates) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)) > 1e-6


def test_rows_are_drawn_from_their_own_distributions():
    logits = torch.full((5, 5), -100.0).fill_diagonal_(100.0)
    for each in (logits, logits.bfloat16()):
        assert choose(each, SamplingConfig(), [Random(0)] * 5, [3] * 5).tolist() == [0, 1, 2, 3, 4]


@few
@given(distinct)
def test_temperature_zero_takes_the_argmax_with_any_filters(logits):
    for options in ({}, dict(top_k=2), dict(top_p=0.1, min_p=0.9)):
        token = choose(torch.tensor([logits]), SamplingConfig(temperature=0, **options), [], [])  # no random numbers
        assert token.tolist() == [logits.index(max(logits))]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-60, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature):
    logits = torch.tensor([[1.0, 3.0, -2.0], [-5.0, -7.0, -6.0]])
    assert choose(logits, SamplingConfig(temperature=temperature), [Random(0)] * 2, [0, 1]).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("logits", [[NAN] * 4, [0, INFINITY, 0, 0], [-INFINITY, 1, NAN, 2], [-INFINITY] * 4], ids=str)
def test_logits_that_allow_no_choice_raise_a_numeric_error(logits, temperature):
    with pytest.raises(NumericError, match="logits are not finite"):
        choose(torch.tensor([[1.0, 2, 3, 4], logits]), SamplingConfig(temperature=temperature), [Random()] * 2, [0, 0])


WORD = (1 << 64) - 1


def splitmix(state: int) -> tuple[int, int]:
    """Steele et al. 2014, in Python's integers: the next state and its output."""
    state = z = (state + 0x9E3779B97F4A7C15) & WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return state, z ^ (z >> 31)


def mixed(z: int) -> int:
    """SplitMix64's output for a state."""
    return splitmix((z - 0x9E3779B97F4A7C15) & WORD)[1]


def test_random_numbers_are_those_of_splitmix64():
    state, outputs = 1234567, []
    for _ in range(5):
        state, output = splitmix(state)
        outputs.append(output)
    assert outputs == [  # the published ones for this seed
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    for seed, position in ((0, 0), (1, 7), (2**63 + 5, 1000), (-1, 3)):
        state, expected = mixed((mixed(seed & WORD) + position * 0x9E3779B97F4A7C15) & WORD), []
        for _ in range(6):
            state, output = splitmix(state)
            expected.append(-math.log(((output >> 12) + 0.5) / 2**52))
        key = torch.tensor([Random(seed).key])
        found = random_times(key, torch.tensor([position]), torch.arange(6))[0]
        assert found.tolist() == pytest.approx(expected, rel=1e-14)
        assert torch.equal(Random(seed).times(position, 6), found)
        assert torch.equal(random_times(key, torch.tensor([position]), torch.arange(4))[0], found[:4])


@pytest.mark.parametrize("options", [{}, dict(top_k=5), dict(top_p=0.5), dict(min_p=0.5, temperature=0.5)], ids=str)
def test_rows_drawn_together_are_those_drawn_alone(options):
    """Of a vocabulary so large that a batch computes its random numbers at once, and only for the tokens kept."""
    logits = torch.randn(12, 2000, generator=torch.Generator().manual_seed(0)) * 3
    seeds, positions = [*range(11), 10], [3 * row for row in range(12)]
    together = choose(logits, SamplingConfig(**options), [Random(seed) for seed in seeds], positions)
    alone = [
        int(choose(row[None], SamplingConfig(**options), [Random(seed)], [position]))
        for row, seed, position in zip(logits, seeds, positions, strict=True)
    ]
    assert together.tolist() == alone and len(set(alone)) > 6


def test_tokens_are_counted_by_row():
    counts = token_counts([[1, 1, 3], [], [0]], torch.zeros(3, 4))
    assert counts.tolist() == [[0, 2, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_random_numbers_are_exponential_and_independent():
    """Kolmogorov-Smirnov, and correlations between neighbouring tokens, positions and seeds."""
    keys, positions = torch.arange(40).repeat_interleave(50), torch.arange(50).repeat(40)
    times = random_times(keys, positions, torch.arange(100))
    uniform, n = (-times.flatten()).exp().sort().values, times.numel()
    distance = (uniform - (torch.arange(n) + 0.5) / n).abs().max() * n**0.5
    assert distance < 2.0  # p = 7e-4
    cube = (times - 1).view(40, 50, 100)  # of mean 0 and variance 1
    for axis in range(3):
        size = cube.shape[axis]
        product = cube.narrow(axis, 0, size - 1) * cube.narrow(axis, 1, size - 1)
        assert abs(product.mean()) * product.numel() ** 0.5 < 4


def test_a_token_is_the_first_to_happen():
    p, times = torch.tensor([0.1, 0.6, 0.3]), torch.tensor([0.2, 0.9, 0.5])  # at 2, 1.5, 1.67
    assert draw(p, times).tolist() == 1
    assert draw(p.expand(2, 3), torch.stack((times, times.flip(0)))).tolist() == [1, 2]  # 5, 1.5, 0.67
    assert Random(3).key == Random(2**64 + 3).key and Random(-1).key == Random(2**64 - 1).key
    assert Random().key != Random().key


# --- options

FRACTIONS = ("top_p", "min_p", "typical_p")
REFUSED = [
    *[("repetition_penalty", value, "positive") for value in (0.0, -1.0, NAN, INFINITY)],
    *[
        (name, value, "a finite number")
        for name in ("presence_penalty", "frequency_penalty")
        for value in (NAN, INFINITY)
    ],
    ("logit_bias", {1: NAN}, "finite numbers by token id"),
    ("logit_bias", {"a": 1.0}, "finite numbers by token id"),
    ("min_new_tokens", -1, "at least 0"),
    ("min_new_tokens", 501, "at most max_new_tokens, 500"),
    *[("max_new_tokens", value, "at least 1") for value in (0, -1)],
    *[("temperature", value, r"0 \(greedy\) or positive") for value in (-0.1, NAN, INFINITY, -INFINITY)],
    *[("top_k", value, "at least 1") for value in (0, -3)],
    *[
        (name, value, r"in \(0, 1\]")
        for name in ("top_p", "min_p", "typical_p")
        for value in (0.0, -0.5, 1.01, NAN, INFINITY)
    ],
]
WRONG_TYPES = [
    ("stop", "end"), ("stop", [3]), ("banned_tokens", 3), ("banned_tokens", ["a"]), ("logit_bias", [1]),
    ("max_new_tokens", INFINITY), ("max_new_tokens", NAN), ("top_k", NAN),
    ("max_new_tokens", 2.5), ("max_new_tokens", "5"), ("temperature", "warm"),
    ("top_k", 2.5), ("top_p", "0.9"), ("seed", 1.5), ("seed", 1 << 64), ("seed", -(1 << 63) - 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "rule"), REFUSED)
def test_invalid_values_are_refused(name, value, rule):
    with pytest.raises(ConfigError, match=rf"^{name} must be {rule}, got {re.escape(str(value))}$"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be .*{re.escape(str(value))}"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(
    "options",
    [{}, dict(temperature=0), dict(top_k=1, top_p=1, min_p=1), dict(top_k=10**9), dict(seed=0), dict(max_new_tokens=1)],
)
def test_values_at_the_bounds_are_allowed(options):
    SamplingConfig(**options)
