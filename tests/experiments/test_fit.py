"""The fit of a law: known constants are recovered from runs that a known law with known noise made."""

import numpy as np
import pytest

from tinylm.errors import DataError
from tinylm.experiments.fit import Constants, Run, bootstrap, fit, fit_free, interval, residuals

LAW = Constants(floor=0.85, size_factor=200.0, size_power=0.6, data_factor=3000.0, data_power=0.7)


def runs_of(law: Constants, noise: float, seed: int = 0) -> list[Run]:
    """Runs of eight sizes with eight numbers of tokens; `noise` is the standard deviation of the log of the excess."""
    random, runs = np.random.default_rng(seed), []
    for params in np.geomspace(3e4, 1e6, 8):
        for tokens in np.geomspace(5e4, 4e6, 8):
            excess = (law.loss(params, tokens) - law.floor) * np.exp(noise * random.standard_normal())
            runs.append(Run(params, tokens, law.floor + excess))
    return runs


@pytest.mark.parametrize("floor", [LAW.floor, None])
def test_a_law_without_noise_is_recovered_exactly(floor):
    np.testing.assert_allclose(fit(runs_of(LAW, 0.0), floor), LAW, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_constants_are_close_and_the_free_floor_within_two_percent(seed):
    runs = runs_of(LAW, 0.03, seed)
    known, free = fit(runs, LAW.floor), fit_free(runs)
    assert known.size_power == pytest.approx(0.6, abs=0.05) and known.data_power == pytest.approx(0.7, abs=0.05)
    assert free.floor == pytest.approx(LAW.floor, rel=0.02)
    # inside the range of the runs both predict the law within a third of its noise
    for params, tokens in ((5e4, 3e6), (2e5, 5e5), (8e5, 8e4)):
        for found in (known, free):
            assert found.loss(params, tokens) - 0.85 == pytest.approx(LAW.loss(params, tokens) - 0.85, rel=0.05)
    assert np.std(residuals(runs, known)) == pytest.approx(0.03, rel=0.2)


def test_runs_that_failed_hardly_move_the_fit():
    runs = runs_of(LAW, 0.02)
    for index in (5, 20, 50):
        runs[index] = runs[index]._replace(loss=7.0)
    assert fit(runs, LAW.floor).size_power == pytest.approx(0.6, abs=0.05)
    assert fit(runs, None).floor == pytest.approx(LAW.floor, rel=0.02)


def test_the_interval_of_the_bootstrap_covers_the_true_constant_as_often_as_it_says():
    covered = 0
    for seed in range(12):
        runs = runs_of(LAW, 0.05, seed)
        low, high = interval([each.data_power for each in bootstrap(runs, lambda some: fit(some, LAW.floor, LAW), 40)])
        covered += low <= LAW.data_power <= high
    assert covered >= 8  # of 10.8 expected; fewer have a probability below 1%


def test_a_resampling_from_the_best_constants_finds_the_same_minimum_as_all_starts():
    runs = runs_of(LAW, 0.03)
    best = fit(runs, LAW.floor)
    np.testing.assert_allclose(fit(runs, LAW.floor, best), best, rtol=1e-4)


def test_what_no_law_can_be_fitted_to_is_refused():
    runs = runs_of(LAW, 0.0)
    with pytest.raises(DataError, match="at least 6 runs, 2 sizes and 2 numbers of tokens, got 5 runs of 1 sizes"):
        fit(runs[:5], None)
    with pytest.raises(DataError, match=r"2 sizes .* got 8 runs of 1 sizes and 8 numbers of tokens"):
        fit(runs[:8], None)
    with pytest.raises(DataError, match=r"a run's loss of \d\.\d{4} is not above the floor of 1\.5000"):
        fit(runs, 1.5)


def test_a_floor_fitted_by_the_excess_is_closer_than_one_fitted_by_the_loss():
    sizes, errors = [(5e4, 7e5), (8e4, 4e5), (1e5, 5e5), (2e5, 3e5), (8e4, 2e6), (2e5, 1e6), (4e5, 3e5), (4e5, 2e6)], []
    random = np.random.default_rng(1)
    for _ in range(6):
        runs = [
            Run(n, d, LAW.floor + (LAW.loss(n, d) - LAW.floor) * np.exp(0.1 * random.standard_normal()))
            for n, d in sizes * 2
        ]
        errors.append([abs(found.floor - LAW.floor) for found in (fit_free(runs, 1), fit(runs, None, LAW))])
    by_excess, by_loss = np.median(errors, axis=0)
    assert by_excess < by_loss
