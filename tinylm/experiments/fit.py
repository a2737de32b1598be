"""Fits the law of loss, L(N, D) = E + A / N^a + B / D^b, to measured runs (Hoffmann et al. 2022, approach 3).

The floor E is known if the entropy of the text is. The residuals are then those of log(L - E), the excess: the seed
changes the excess by some percent, whether it is large or small, but never the floor. The parameters minimize the Huber
loss of the residuals, so that a run that failed to train has little influence. Each step of the Levenberg-Marquardt
method solves a weighted linear least-squares problem; several starts guard against local minima.

With a free floor `fit` takes residuals of log L, as the paper does. They are dominated by the large losses of short
runs, which say least about the floor. `fit_free` is more exact if all runs deviate by the same share of their
excess: it takes the floor under which the measured losses are most likely.

Intervals are percentiles over fits to resampled runs (the bootstrap).

N and D are scaled by their geometric means inside the fit: unscaled, A and a are correlated so strongly that the
steps become tiny.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinylm.errors import DataError

HUBER, HUBER_FREE = 0.05, 1e-3  # residuals of log(L - E), and of log L, beyond which the pull is constant
STEPS = 200
LEAST_RUNS = 6


class Run(NamedTuple):
    """A measured run."""

    params: float
    tokens: float
    loss: float


class Constants(NamedTuple):
    """The constants of L(N, D) = E + A / N^a + B / D^b, in nats per token."""

    floor: float  # E
    size_factor: float  # A
    size_power: float  # a
    data_factor: float  # B
    data_power: float  # b

    def loss(self, params: float, tokens: float) -> float:
        """Expected loss of a model of `params` parameters trained on `tokens` tokens."""
        return self.floor + self.size_factor * params**-self.size_power + self.data_factor * tokens**-self.data_power


def fit(runs: Sequence[Run], floor: float | None, start: Constants | None = None) -> Constants:
    """The constants that fit best.

    Args:
        runs: measured runs
        floor: E if it is known. None: fitted too
        start: constants near the best ones, so that a single start suffices

    Raises:
        DataError: if there are too few runs, of one size or one number of tokens, or a loss is not above the floor.
    """
    n, d, loss = np.array(runs, dtype=np.float64).reshape(-1, 3).T
    _check(n, d, loss, floor)
    scale_n, scale_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    problem = _Problem(np.log(n / scale_n), np.log(d / scale_d), loss, floor)
    starts = problem.starts()
    if start is not None:
        size, data = start.size_factor * scale_n**-start.size_power, start.data_factor * scale_d**-start.data_power
        whole = np.log([size, start.size_power, data, start.data_power, start.floor])
        starts = [whole if floor is None else whole[:4]]
    best = min(map(problem.solve, starts), key=problem.cost)
    a, power_n, b, power_d, *free = np.exp(best).tolist()
    e = free[0] if floor is None else float(floor)
    return Constants(e, float(a * scale_n**power_n), power_n, float(b * scale_d**power_d), power_d)


def _check(n: np.ndarray, d: np.ndarray, loss: np.ndarray, floor: float | None) -> None:
    if len(loss) < LEAST_RUNS or min(len(np.unique(n)), len(np.unique(d))) < 2:
        counts = f"{len(loss)} runs of {len(np.unique(n))} sizes and {len(np.unique(d))} numbers of tokens"
        raise DataError(f"a law needs at least {LEAST_RUNS} runs, 2 sizes and 2 numbers of tokens, got {counts}")
    if floor is not None and loss.min() <= floor:
        raise DataError(f"a run's loss of {loss.min():.4f} is not above the floor of {floor:.4f}")


class _Problem:
    """Residuals as a function of the logarithms of (A, a, B, b) and, with a free floor, E: all are positive."""

    def __init__(self, x: np.ndarray, y: np.ndarray, loss: np.ndarray, floor: float | None) -> None:
        self.x, self.y, self.loss, self.floor = x, y, loss, floor
        self.huber = HUBER_FREE if floor is None else HUBER
        self.target = np.log(loss - (floor or 0.0))

    def starts(self) -> Iterator[np.ndarray]:
        """Exponents of 1/4, 1/2 and 1; with a free floor, floors close to and far below the lowest loss."""
        floors = np.array([0.5, 0.8, 0.95, 0.99]) * self.loss.min() if self.floor is None else [self.floor]
        for power_n, power_d, floor in itertools.product((0.25, 0.5, 1.0), (0.25, 0.5, 1.0), floors):
            half = max((np.median(self.loss) - floor) / 2, 1e-3)
            whole = np.log([half, power_n, half, power_d, floor])
            yield whole if self.floor is None else whole[:4]

    def residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals (runs,) and their derivatives with respect to theta, (runs, 4 or 5)."""
        a, power_n, b, power_d, *free = np.exp(np.clip(theta, -50, 50))
        size, data = a * np.exp(-power_n * self.x), b * np.exp(-power_d * self.y)
        columns = [size, -size * power_n * self.x, data, -data * power_d * self.y]
        columns += [np.full_like(size, each) for each in free]
        model = size + data + sum(free)
        return np.log(model) - self.target, np.stack(columns, axis=1) / model[:, None]

    def cost(self, theta: np.ndarray) -> float:
        """The Huber loss."""
        r, huber = np.abs(self.residuals(theta)[0]), self.huber
        return float(np.where(r < huber, r**2 / 2, huber * (r - huber / 2)).sum())

    def solve(self, theta: np.ndarray) -> np.ndarray:
        """Levenberg-Marquardt, with weights that make least squares the Huber loss."""
        damping, cost = 1e-3, self.cost(theta)
        for _ in range(STEPS):
            r, jacobian = self.residuals(theta)
            weighted = jacobian * np.minimum(1, self.huber / np.maximum(np.abs(r), 1e-300))[:, None]
            normal = jacobian.T @ weighted
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), weighted.T @ r)
            step /= max(1.0, np.abs(step).max())
            new = self.cost(theta - step)
            if new > cost:
                damping *= 4
                if damping > 1e12:
                    break
                continue
            done = cost - new <= 1e-12 * cost and damping <= 1e-2
            theta, cost, damping = theta - step, new, max(damping / 3, 1e-9)
            if done:
                break
        return theta


def residuals(runs: Sequence[Run], law: Constants) -> list[float]:
    """Logarithms of measured excess over expected excess."""
    return [float(np.log((run.loss - law.floor) / (law.loss(run.params, run.tokens) - law.floor))) for run in runs]


def fit_free(runs: Sequence[Run], rounds: int = 3) -> Constants:
    """The constants with the most likely floor, if log(L - E) deviates from the law by a Laplace distribution.

    For each E the other constants are those of `fit`. With deviations r of mean size s, the n measured losses have
    the negative log likelihood n log s + sum of log(L - E), up to a constant; the sum is the change of variables from
    L to log(L - E). Floors within 0.2% of the lowest loss are left out: a floor that touches it is likely only
    because the density of that one run grows without bound.

    Errors are those of `fit`.
    """
    lowest, best, gaps = min(run.loss for run in runs), None, np.geomspace(2e-3, 0.6, 25)
    for _ in range(rounds):
        found, law = [], None
        for gap in gaps:
            law = fit(runs, lowest * (1 - float(gap)), law)
            r = np.array(residuals(runs, law))
            change = sum(np.log(run.loss - law.floor) for run in runs)
            found.append((len(r) * np.log(np.abs(r).mean() + 1e-12) + change, law))
        place = min(range(len(found)), key=lambda index: found[index][0])
        best = found[place][1]
        gaps = np.geomspace(gaps[max(place - 1, 0)], gaps[min(place + 1, len(gaps) - 1)], 9)
    assert best is not None
    return best


def bootstrap(
    runs: Sequence[Run], fit: Callable[[Sequence[Run]], Constants], count: int = 200, seed: int = 0
) -> list[Constants]:
    """Fits to `count` resamplings of the runs with replacement; resamplings that no law fits are drawn again."""
    random, found = np.random.default_rng(seed), []
    for _ in range(4 * count):
        drawn = [runs[index] for index in random.integers(len(runs), size=len(runs))]
        try:
            found.append(fit(drawn))
        except DataError:
            continue
        if len(found) == count:
            break
    return found


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """The central interval that contains a share `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
