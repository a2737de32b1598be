import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.errors import ConfigError
from tinylm.optim.schedule import ScheduleConfig, learning_rate
from tinylm.optim.scheduler import make_scheduler

NAMES = ("cosine", "linear", "trapezoid", "constant")


def rates(total: int, lr: float, **options) -> list[float]:
    config = ScheduleConfig(**options)
    return [learning_rate(step, total, lr, config) for step in range(total + 1)]


def test_warmup_is_a_line_from_zero():
    assert rates(20, 1.0, warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_matches_nanogpts_formula():
    """min + (lr - min) (1 + cos(pi (t - w) / (T - w))) / 2"""
    found = rates(2000, 1e-3, name="cosine", warmup_steps=100, min_lr=1e-4)
    for step in range(100, 2001):
        expected = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4
        assert found[step] == pytest.approx(expected, rel=1e-12)


def test_linear_is_halfway_in_the_middle():
    found = rates(110, 1.0, name="linear", warmup_steps=10, min_lr=0.5)
    assert (found[10], found[60], found[110]) == pytest.approx((1.0, 0.75, 0.5))


def test_trapezoid_stays_up_and_then_falls_over_its_last_steps():
    found = rates(100, 1.0, name="trapezoid", warmup_steps=10, decay_steps=40)
    assert found[10:61] == [1.0] * 51
    assert (found[80], found[100]) == pytest.approx((0.5, 0.0))
    assert rates(100, 1.0, name="trapezoid", warmup_steps=0)[79:82] == pytest.approx([1.0, 1.0, 0.95])  # a fifth


def test_constant_stays():
    assert set(rates(30, 0.3, name="constant", warmup_steps=0)) == {0.3}


def test_a_group_added_during_the_run_follows_the_schedule_from_its_own_rate():
    """From 1 to 0 in 10 steps: the factor is 0.6 when a rate of 0.3 is added, so it stands for 0.5."""
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([first], lr=2.0)
    scheduler = make_scheduler(optimizer, ScheduleConfig(name="linear", warmup_steps=0), lambda: 10)
    found = []
    for step in range(7):
        if step == 4:
            optimizer.add_param_group({"params": [second], "lr": 0.3})
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert found[3:] == [pytest.approx(each) for each in ([1.4], [1.2, 0.3], [1.0, 0.25], [0.8, 0.2])]


@given(
    name=st.sampled_from(NAMES),
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    minimum=st.floats(0, 1),
    decay=st.none() | st.integers(0, 400),
)
@settings(max_examples=60, deadline=None)
def test_rate_is_positive_in_warmup_then_never_rises_nor_leaves_its_bounds(name, total, warmup, minimum, decay):
    found = rates(total, 1.0, name=name, warmup_steps=warmup, min_lr=minimum, decay_steps=decay)
    after = found[warmup:]
    assert all(0 < rate <= 1 for rate in found[:warmup])
    assert all(minimum - 1e-12 <= rate <= 1 for rate in after)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))


@pytest.mark.parametrize("field", ["warmup_steps", "min_lr", "decay_steps"])
def test_negative_values_are_refused(field):
    with pytest.raises(ConfigError, match=f"{field} must not be negative, got -1"):
        ScheduleConfig(**{field: -1})
