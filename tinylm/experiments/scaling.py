"""A scaling law measured from end to end: the grid, the fit, and predictions written before their runs.

Until attention has learned to copy names, the loss of a run on `stories` stays on a plateau, which follows another law:
runs that end there are shown but not fitted. The runs of some budgets are held out. For each held-out budget the law
recommends a size and predicts the loss; both are written to `predictions.json`, with the time. Only then are these runs
trained and compared.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinylm.checks import require
from tinylm.experiments.fit import Constants, Run, bootstrap, fit, fit_free, interval, residuals
from tinylm.experiments.grid import RESULTS, Point, Result, check_floor, plan, run_missing
from tinylm.experiments.law import Best, Law
from tinylm.experiments.plain_run import Texts
from tinylm.files import append_text, make_folder, read_json, write_json
from tinylm.runs.folder import Claim

PREDICTIONS = "predictions.json"
SAMPLES, FREE_SAMPLES = 200, 30  # number of fits to resampled runs, and of those with a free floor, which take longer


@dataclass(frozen=True)
class Study:
    """Texts, sizes and budgets of a study.

    Attributes:
        texts: the text
        widths: of the networks
        budgets: FLOPs of the fitted runs
        held_out: FLOPs of held-out runs
        held_out_seeds: for each of these budgets, runs of each size, as `seeds`
        largest: FLOPs of single runs of the size that the law recommends, whose loss is predicted
        seed: of the first weights
        seeds: runs of each size and budget, from `seed` on: near the best size, sizes differ by less than single runs
            deviate
        steps: fewest and most steps of a run of the grid
        layers: of the networks
        plateau: nats above the floor beyond which a run is not fitted
    """

    texts: Texts
    widths: Sequence[int]
    budgets: Sequence[float]
    held_out: Sequence[float]
    held_out_seeds: Sequence[int]
    largest: Sequence[float]
    seed: int = 1
    seeds: int = 1
    steps: tuple[int, int] = (250, 4000)
    plateau: float = 0.3
    layers: int = 2

    def fitted_points(self) -> list[Point]:
        """The runs that are fitted."""
        return self._points(self.budgets, [self.seeds] * len(self.budgets))

    def held_out_points(self) -> list[Point]:
        """The runs of all sizes with the budgets that are not fitted."""
        return self._points(self.held_out, self.held_out_seeds)

    def _points(self, budgets: Sequence[float], seeds: Sequence[int]) -> list[Point]:
        count = dict(zip(budgets, seeds, strict=True))
        points = plan(self.widths, budgets, self.texts, self.seed, self.steps, self.layers)
        return [
            point._replace(seed=self.seed + more)
            for more in range(max(seeds, default=0))
            for point in points
            if more < count[point.budget]
        ]


class Fitted(NamedTuple):
    """The law fitted to some results, and the law with a free floor.

    Attributes:
        law: with the known floor
        free: constants of `fit_free`
        free_floor: 90% interval of its floor
        paper_floor: floor of `fit` by residuals of log L
        runs: number of runs fitted
        left_out: number of runs on the plateau, which are not fitted
    """

    law: Law
    free: Constants
    free_floor: tuple[float, float]
    paper_floor: float
    runs: int
    left_out: int


def fit_results(results: Sequence[Result], study: Study) -> Fitted:
    """Fits the law to results of one text.

    Raises:
        ConfigError: if their floors differ.
        DataError: if they are too few.
    """
    runs = fitted_runs(results, study)
    law, free = fit_law(results, study), fit_floor(runs)
    return Fitted(law, *free, fit(runs, None).floor, len(runs), len(results) - len(runs))


def fitted_runs(results: Sequence[Result], study: Study) -> list[Run]:
    """The runs that ended at most `plateau` above the floor."""
    floor = check_floor(results)
    return [Run(each.params, each.tokens, each.loss) for each in results if each.loss - floor <= study.plateau]


def fit_law(results: Sequence[Result], study: Study) -> Law:
    """The law with the known floor, and its resamplings."""
    floor, runs, texts = check_floor(results), fitted_runs(results, study), study.texts
    known = fit(runs, floor)
    drawn = bootstrap(runs, lambda some: fit(some, floor, known), SAMPLES)
    return Law(known, drawn, residuals(runs, known), texts.data.vocab_size, texts.context, study.layers)


def fit_floor(runs: Sequence[Run]) -> tuple[Constants, tuple[float, float]]:
    """The constants of `fit_free`, and the 90% interval of their floor."""
    floors = [each.floor for each in bootstrap(runs, lambda some: fit_free(some, rounds=1), FREE_SAMPLES)]
    return fit_free(runs), interval(floors)


def predict(fitted: Fitted, study: Study, folder: Path) -> dict[str, Any]:
    """Writes the law's predictions for held-out budgets; existing predictions are never changed."""
    path = folder / PREDICTIONS
    earlier = read_json(path) if path.exists() else {}
    found = {}
    for budget in (*study.held_out, *study.largest):
        name = f"{budget:g}"
        found[name] = earlier.get(name) or prediction(fitted.law, study, budget)
    if found != {name: earlier.get(name) for name in found}:
        write_json(path, earlier | found)
    return found


def prediction(law: Law, study: Study, budget: float) -> dict[str, Any]:
    """The best size for a budget, the nearest size that is trained, and its predicted loss."""
    best = law.best(budget)
    point = nearest(
        plan(study.widths, [budget], study.texts, study.seed, (1, 1 << 40), study.layers), best, study.texts
    )
    params, tokens = point.params(study.texts), point.tokens(study.texts)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    size = {"params": params, "tokens": tokens, "width": point.width, "steps": point.steps}
    expected = law.expect(params, tokens)._asdict()
    return {"written": now, "best": best._asdict() | {"expected": best.expected._asdict()}, **size, **expected}


def nearest(points: Sequence[Point], best: Best, texts: Texts) -> Point:
    """The run whose number of parameters is nearest to the best one, by ratio."""
    require(len(points) > 0, "no width fits this budget; give more widths")
    return min(points, key=lambda point: max(point.params(texts) / best.params, best.params / point.params(texts)))


class Measured(NamedTuple):
    """A finished study: the law of the fitted budgets, all results, and the predictions for held-out budgets."""

    fitted: Fitted
    results: list[Result]
    predictions: dict[str, Any]


def measure(study: Study, folder: Path, report: Callable[[Result], None] = lambda result: None) -> Measured:
    """Trains the runs to fit, fits, predicts, and trains the held-out runs; skips runs that `folder` already has."""
    append_text(make_folder(folder) / RESULTS, "")  # this file identifies the folder
    claim = Claim(folder)
    try:
        results = run_missing(study.fitted_points(), study.texts, folder, report)
        fitted = fit_results(results, study)
        predictions = predict(fitted, study, folder)
        rest = {*study.held_out_points(), *(predicted_point(study, *each) for each in predictions.items())}
        cheap_first = sorted(rest, key=lambda point: (point.seed, point.budget, point.width))
        results += run_missing(cheap_first, study.texts, folder, report)
    finally:
        claim.release()
    return Measured(fitted, results, predictions)


def predicted_point(study: Study, budget: str, predicted: dict[str, Any]) -> Point:
    """The run of a prediction."""
    return Point(predicted["width"], float(budget), predicted["steps"], study.seed, study.layers)
