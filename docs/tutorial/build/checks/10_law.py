"""Properties of a law of loss."""

import numpy as np

from tinylm.experiments.fit import Constants

CONSTANTS = dict(floor=0.85, size_factor=5e4, size_power=1.2, data_factor=2e4, data_power=0.9)


def refuses(call):
    """Whether a call raises ValueError."""
    try:
        call()
    except ValueError:
        return True
    return False


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    sizes = [1e4, 3e4, 1e5, 4e5, 1e6]
    exact = [0.85 + 40 / size**0.5 for size in sizes]
    noisy = [0.85 + 40 / size**0.5 * noise for size, noise in zip(sizes, (1.2, 0.9, 1.1, 0.8, 1.05), strict=True)]
    slope, at_zero = np.polynomial.polynomial.polyfit(np.log(sizes), np.log(np.array(noisy) - 0.85), 1)[::-1]
    theirs, law = Constants(**CONSTANTS), mine.Law(**CONSTANTS)
    even = mine.Law(1.0, 100.0, 0.5, 100.0, 0.5)

    def brute(budget, sizes):
        return min(sizes, key=lambda size: theirs.loss(size, budget / (6 * size)))

    yield (
        "sizes 1 and 100, losses 3 and 1.2 and the floor 1 give the factor 2 and the power 1/2",
        np.array([2.0, 0.5]),
        lambda: np.array(mine.fit_power([1.0, 100.0], [3.0, 1.2], 1.0)),
        "the excess falls from 2 to 0.2, by 10, while the size grows by 100: 100^(1/2) = 10",
    )
    yield (
        "losses that lie on 0.85 + 40 / N^0.5 give 40 and 0.5",
        np.array([40.0, 0.5]),
        lambda: np.array(mine.fit_power(sizes, exact, 0.85)),
        "subtract the floor before the logarithm; the factor is the exponential of the line's value at log N = 0",
    )
    yield (
        "another floor gives other constants: on 40 / N^0.5, with the floor 0",
        np.array([40.0, 0.5]),
        lambda: np.array(mine.fit_power(sizes, [40 / size**0.5 for size in sizes], 0.0)),
        "the floor is an argument",
    )
    yield (
        "losses with noise give the line of least squares in the logarithms, which NumPy finds",
        np.array([np.exp(at_zero), -slope]),
        lambda: np.array(mine.fit_power(sizes, noisy, 0.85)),
        "np.polyfit(x, y, 1) gives the slope first; take natural logarithms of both",
    )
    yield (
        "a loss at the floor raises ValueError",
        True,
        lambda: refuses(lambda: mine.fit_power([1.0, 2.0], [1.5, 1.0], 1.0)),
        "the logarithm of 0 is -inf, and NumPy would go on with it",
    )
    yield (
        "E = 1, A = 2, a = 1/2, B = 10, b = 1 expect 1.4 of N = 100 and D = 50",
        1.4,
        lambda: mine.loss(mine.Law(1.0, 2.0, 0.5, 10.0, 1.0), 100.0, 50.0),
        "1 + 2/10 + 10/50",
    )
    yield (
        "the expected losses are tinylm's",
        np.array([theirs.loss(size, 2e6) for size in sizes]),
        lambda: np.array([mine.loss(law, size, 2e6) for size in sizes]),
        "each term has its own factor and power",
    )
    yield (
        "if both terms are alike, the best size is as large as the number of tokens: √(6e10 / 6) = 1e5",
        1e5,
        lambda: float(mine.best_size(even, 6e10, [1e3, 1e4, 4e4, 1e5, 2.4e5, 1e6])),
        "tokens = budget / (6 size)",
    )
    yield (
        "the best of many sizes are the same as by tinylm's law, for four budgets",
        np.array([brute(budget, range(10_000, 900_000, 10_000)) for budget in (1e11, 1e12, 1e13, 1e14)], dtype=float),
        lambda: np.array(
            [mine.best_size(law, budget, list(range(10_000, 900_000, 10_000))) for budget in (1e11, 1e12, 1e13, 1e14)],
            dtype=float,
        ),
        "the lowest loss wins, at the number of tokens that the budget leaves for this size",
    )
