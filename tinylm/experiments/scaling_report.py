"""The report of a scaling law: `scaling.json` with all figures, `scaling.md` with the tables, and three pictures."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm.console import plural, table
from tinylm.experiments.fit import Constants, interval
from tinylm.experiments.grid import Result
from tinylm.experiments.law import Law
from tinylm.experiments.scaling import Fitted, Study, fit_floor, fit_law, fitted_runs
from tinylm.files import write_json, write_text
from tinylm.runs.axes import scale_axis, short_number, tidy
from tinylm.runs.plots import MARKERS, save_figure
from tinylm.runs.style import COLORS, GREEN, ink, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_FOR_PARABOLA = 3


def by_budget(results: Sequence[Result]) -> dict[float, list[Result]]:
    """Results of each budget, small networks first."""
    budgets = sorted({each.budget for each in results})
    return {
        budget: sorted((each for each in results if each.budget == budget), key=lambda each: each.params)
        for budget in budgets
    }


def parabola(results: Sequence[Result]) -> np.ndarray | None:
    """Coefficients of log(loss - floor) as a parabola of log N (Hoffmann et al. 2022, approach 2).

    None if the results are too few, or have no minimum.
    """
    if len(results) < LEAST_FOR_PARABOLA:
        return None
    x = np.log([each.params for each in results])
    found = np.polyfit(x, np.log([each.loss - each.floor for each in results]), 2)
    return found if found[0] > 0 else None


def summary(study: Study, fitted: Fitted, results: Sequence[Result], predictions: dict[str, Any]) -> dict[str, Any]:
    """All figures of the report: the law that was checked, and the law fitted to all runs, which is the one to use."""
    law, floor = fitted.law, fitted.law.constants.floor
    intervals = {name: interval([getattr(each, name) for each in law.samples]) for name in Constants._fields[1:]}
    checks = {name: checked(values, float(name), results) for name, values in predictions.items()}
    usual = fitted_runs(medians(results), study)
    return {
        "text": study.texts.name,
        "runs": fitted.runs,
        "left_out": fitted.left_out,
        "plateau": study.plateau,
        "floor": floor,
        "law": law.to_dict(),
        "intervals": intervals,
        "free": free_floor(fitted.free, fitted.free_floor, floor),
        "free_of_all": free_floor(*fit_floor(usual), floor) | {"runs": len(results), "medians": len(usual)},
        "paper_floor": fitted.paper_floor,
        "spread": float(np.std(law.residuals)),
        "checks": checks,
        "law_of_all": fit_law(results, study).to_dict(),
        "results": [asdict(each) for each in results],
    }


def medians(results: Sequence[Result]) -> list[Result]:
    """One result of each size and budget, with the median loss of its seeds, so that no budget counts for its seeds."""
    found: dict[tuple[int, float], list[Result]] = {}
    for each in results:
        found.setdefault((each.width, each.budget), []).append(each)
    return [replace(some[0], loss=statistics.median(each.loss for each in some)) for some in found.values()]


def free_floor(free: Constants, interval: tuple[float, float], known: float) -> dict[str, Any]:
    """The law with a free floor: its constants, the interval of the floor, and its deviation from the known one."""
    return free._asdict() | {"interval": interval, "off": free.floor / known - 1}


def checked(predicted: dict[str, Any], budget: float, results: Sequence[Result]) -> dict[str, Any]:
    """A prediction beside the losses measured for its budget, medians over seeds.

    The law, fitted with a Huber loss, describes the usual run; now and then a run ends on an earlier plateau.
    """
    losses: dict[int, list[float]] = {}
    for each in results:
        if each.budget == budget:
            losses.setdefault(each.width, []).append(each.loss)
    if predicted["width"] not in losses:
        return predicted
    usual = {width: statistics.median(each) for width, each in losses.items()}
    loss, best = usual[predicted["width"]], min(usual.values())
    return predicted | {
        "measured": loss, "error": loss / predicted["loss"] - 1, "best_measured": best, "above_best": loss / best - 1,
        "sizes": len(usual), "seeds": len(losses[predicted["width"]]),
    }  # fmt: skip


def markdown(found: dict[str, Any], results: Sequence[Result]) -> str:
    """The tables."""
    law, free, whole, intervals = found["law"]["constants"], found["free"], found["free_of_all"], found["intervals"]
    rows = [["", "floor known", "90%", "floor free", f"floor free, all {whole['runs']} runs"]]
    rows.append(
        ["E", f"{law['floor']:.4f}", "", *(f"{each['floor']:.4f} ({each['off']:+.1%})" for each in (free, whole))]
    )
    for symbol, name in (("A", "size_factor"), ("a", "size_power"), ("B", "data_factor"), ("b", "data_power")):
        low, high = intervals[name]
        rows.append([symbol, f"{law[name]:.4g}", f"{low:.4g} to {high:.4g}", f"{free[name]:.4g}", f"{whole[name]:.4g}"])
    runs = [["FLOPs", "parameters", "tokens", "loss", "above the floor"]]
    for each in sorted(results, key=lambda each: (each.budget, each.params)):
        excess = f"{each.loss / each.floor - 1:.1%}"
        runs.append([f"{each.budget:g}", f"{each.params:,}", f"{each.tokens:,}", f"{each.loss:.4f}", excess])
    spans = (f"{low:.4f} to {high:.4f}" for low, high in (free["interval"], whole["interval"]))
    return "\n\n".join([
        "# Scaling law",
        f"{found['runs']} runs fitted, on {found['text']}. L(N, D) = E + A / N^a + B / D^b, in nats per token. "
        f"Not fitted: {plural(found['left_out'], 'run')} that ended more than {found['plateau']:g} nats above E.",
        marked(rows),
        f"All runs: medians over the seeds of {whole['medians']} sizes and budgets. "
        f"Interval of the free floor: {', with all runs '.join(spans)}; by residuals of log L, as in the paper, "
        f"{found['paper_floor']:.4f}. Deviation of a run's excess from the law: "
        f"{found['spread']:.0%} (standard deviation).",
        "## Predictions",
        marked(predictions_table(found["checks"])),
        "## Runs",
        marked(runs),
    ]) + "\n"  # fmt: skip


def predictions_table(checks: dict[str, Any]) -> list[list[str]]:
    """Predictions for budgets that were not fitted, and the measured losses."""
    rows = [
        [
            "FLOPs",
            "written",
            "parameters",
            "predicted",
            "90%",
            "measured",
            "seeds",
            "error",
            "best measured",
            "above it",
        ]
    ]
    for name, each in checks.items():
        row = [name, each["written"], f"{each['params']:,}", f"{each['loss']:.4f}"]
        row.append(f"{each['low']:.4f} to {each['high']:.4f}")
        if "measured" in each:
            alone = each["sizes"] == 1
            row += [f"{each['measured']:.4f}", str(each["seeds"]), f"{each['error']:+.1%}"]
            row += ["", ""] if alone else [f"{each['best_measured']:.4f}", f"{each['above_best']:.1%}"]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return rows


def marked(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(
    study: Study, fitted: Fitted, results: Sequence[Result], predictions: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes report and pictures, and returns the figures."""
    found = summary(study, fitted, results, predictions)
    write_json(folder / "scaling.json", found)
    write_text(folder / "scaling.md", markdown(found, results))
    pictures: dict[str, Callable[[Law, Sequence[Result]], Any]] = {
        "isoflops.png": draw_isoflops, "frontier.png": draw_frontier, "law.png": draw_law,
    }  # fmt: skip
    for name, draw in pictures.items():
        save_figure(draw(fitted.law, results), folder / name)
    return found


def short_table(found: dict[str, Any]) -> str:
    """The predictions and their outcome, for a terminal."""
    rows = predictions_table(found["checks"])
    return table([[cell for place, cell in enumerate(row) if place != 1] for row in rows])


@style()
def draw_isoflops(law: Law, results: Sequence[Result]) -> "Figure":
    """Excess against size for each budget: measured runs, their parabola and its minimum, and the law."""
    figure = new_figure(8.5, 4.8)
    axes = figure.add_subplot()
    floor = law.constants.floor
    groups = {budget: runs for budget, runs in by_budget(results).items() if len(runs) > 1}
    for (budget, runs), color, marker in zip(groups.items(), COLORS * 3, MARKERS * 3, strict=False):
        n = np.array([each.params for each in runs])
        axes.plot(n, [each.loss - floor for each in runs], marker, color=color, label=f"{budget:.2g} FLOPs")
        fine = np.geomspace(n[0], n[-1], 100)
        axes.plot(fine, [law.loss(x, budget / (law.flops(x, 1))) - floor for x in fine], "-", color=color, linewidth=1)
        if (curve := parabola(runs)) is not None:
            axes.plot(fine, np.exp(np.polyval(curve, np.log(fine))), ":", color=color, linewidth=1)
            lowest = -curve[1] / (2 * curve[0])
            if np.log(n[0]) <= lowest <= np.log(n[-1]):
                axes.plot(np.exp(lowest), np.exp(np.polyval(curve, lowest)), "*", color=ink(), markersize=9, zorder=5)
    for form, label in (("-", "law"), (":", "parabola"), ("*", "its minimum")):
        axes.plot([], [], form, color=ink(), linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="loss above the floor (nats per token)")
    figure.legend(loc="outside right upper")
    finish(axes)
    return figure


@style()
def draw_frontier(law: Law, results: Sequence[Result]) -> "Figure":
    """Loss against computation: all runs, the law's best loss with its interval, and the floor."""
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    axes.plot([each.flops for each in results], [each.loss for each in results], "o", color=COLORS[0], markersize=4)
    budgets = np.geomspace(min(each.flops for each in results) / 2, 20 * max(each.flops for each in results), 60)
    best = [law.best(budget).expected for budget in budgets]
    axes.plot(budgets, [each.loss for each in best], "-", color=COLORS[1], label="best loss of the law")
    bounds = [each.low for each in best], [each.high for each in best]
    axes.fill_between(budgets, *bounds, color=COLORS[1], alpha=0.2, linewidth=0, label="90% of single runs")
    axes.axhline(law.constants.floor, color=GREEN, linestyle="--", label="entropy of the text")
    axes.set(xscale="log", xlabel="floating-point operations of training", ylabel="loss (nats per token)")
    axes.legend()
    finish(axes)
    return figure


@style()
def draw_law(law: Law, results: Sequence[Result]) -> "Figure":
    """Excess against tokens, a line for each size, and against size, a line for each budget."""
    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    floor, sizes = law.constants.floor, sorted({each.params for each in results})
    for size, color, marker in zip(sizes, COLORS * 3, MARKERS * 3, strict=False):
        runs = sorted((each for each in results if each.params == size), key=lambda each: each.tokens)
        d = np.array([each.tokens for each in runs])
        label = f"{short_number(size)} parameters" if size < 1e4 else f"{size / 1e3:,.0f}k parameters"
        axes.plot(d, [each.loss - floor for each in runs], marker, color=color, markersize=4, label=label)
        fine = np.geomspace(d[0], d[-1], 50)
        axes.plot(fine, [law.loss(size, tokens) - floor for tokens in fine], "-", color=color, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="loss above the floor (nats per token)")
    figure.legend(loc="outside right upper")
    finish(axes)
    return figure


def finish(axes: Any) -> None:
    """Plain numbers on logarithmic axes."""
    for axis in (axes.xaxis, axes.yaxis):
        scale_axis(axis, 8, logarithmic=axis.get_scale() == "log")
    tidy(axes)
