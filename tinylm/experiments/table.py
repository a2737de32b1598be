"""The table of an ablation: a row for each variant, as Markdown, CSV and text."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinylm.console import duration, table
from tinylm.experiments.ablation import Ablation, run_name
from tinylm.experiments.intervals import Difference, Mean, mean, paired_difference
from tinylm.experiments.results import Result

TIMES = ("tokens_per_sec", "seconds")
"""Columns that depend on the machine, not on the configs."""


@dataclass(frozen=True)
class Summary:
    """The figures of a variant over its seeds. None: unknown.

    Attributes:
        name: the variant
        runs: its finished runs
        loss: lowest validation loss, in nats per token
        bpb: bits per byte at the same step
        excess: excess over the loss floor, as a fraction, at the same step
        difference: loss minus the reference's loss with the same seed
        fixed: parameters, steps, tokens and FLOPs of a run
        tokens_per_sec: training speed
        seconds: time of a run's training
    """

    name: str
    runs: int
    loss: Mean | None
    bpb: Mean | None
    excess: Mean | None
    difference: Difference | None
    fixed: dict[str, float | None]
    tokens_per_sec: Mean | None
    seconds: Mean | None


def summarize(ablation: Ablation, results: dict[str, Result]) -> list[Summary]:
    """The figures of all variants, in the order of the file.

    Args:
        ablation: the ablation
        results: the finished runs by name
    """
    by_seed = {
        variant.name: {seed: results[run_name(variant.name, seed)] for seed in ablation.seeds
                       if run_name(variant.name, seed) in results}
        for variant in ablation.variants
    }  # fmt: skip
    reference = _losses(by_seed[ablation.reference])
    return [_summary(name, found, None if name == ablation.reference else reference) for name, found in by_seed.items()]


def _losses(found: dict[int, Result]) -> dict[int, float]:
    return {seed: each.row.val_loss for seed, each in found.items() if each.row.val_loss is not None}


def _summary(name: str, found: dict[int, Result], reference: dict[int, float] | None) -> Summary:
    runs, losses = [*found.values()], _losses(found)
    common = sorted(losses.keys() & (reference or {}).keys())
    difference = None
    if common and reference is not None:
        difference = paired_difference([losses[seed] for seed in common], [reference[seed] for seed in common])
    fixed = {key: getattr(runs[0].row, key) for key in ("parameters", "steps", "tokens")} if runs else {}
    return Summary(
        name=name,
        runs=len(runs),
        loss=_mean(runs, lambda each: each.row.val_loss),
        bpb=_mean(runs, lambda each: each.row.bpb),
        excess=_mean(runs, lambda each: each.row.excess),
        difference=difference,
        fixed={**fixed, "flops": runs[0].flops} if runs else {},
        tokens_per_sec=_mean(runs, lambda each: each.tokens_per_second),
        seconds=_mean(runs, lambda each: each.row.seconds),
    )


def _mean(runs: Sequence[Result], figure: Callable[[Result], float | None]) -> Mean | None:
    values = [value for value in map(figure, runs) if value is not None]
    return mean(values) if len(values) == len(runs) and runs else None


# --- as text

Cell = Callable[[Summary], str]


def columns(ablation: Ablation, summaries: Sequence[Summary], times: bool) -> dict[str, Cell]:
    """The columns by title; those that no variant fills are left out."""
    found: dict[str, Cell] = {
        "variant": lambda each: each.name,
        "runs": lambda each: str(each.runs),
        "val loss": lambda each: _shown(each.loss, "{:.4f}"),
        "bits/byte": lambda each: _shown(each.bpb, "{:.4f}"),
        "above the floor": lambda each: _shown(each.excess, "{:.2%}"),
        f"difference to {ablation.reference}": _difference,
        "95% interval": _interval,
        "parameters": lambda each: _count(each.fixed.get("parameters")),
        "steps": lambda each: _count(each.fixed.get("steps")),
        "tokens": lambda each: _count(each.fixed.get("tokens")),
    }
    if times:
        found["tokens/s"] = lambda each: _count(each.tokens_per_sec and each.tokens_per_sec.value)
        found["time"] = lambda each: "-" if each.seconds is None else duration(each.seconds.value)
    return {title: cell for title, cell in found.items() if any(cell(each) != "-" for each in summaries)}


def _shown(figure: Mean | None, form: str) -> str:
    if figure is None:
        return "-"
    return form.format(figure.value) + ("" if figure.spread is None else f" ± {form.format(figure.spread)}")


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _difference(each: Summary) -> str:
    return "-" if each.difference is None else f"{each.difference.value:+.4f}"


def _interval(each: Summary) -> str:
    ends = None if each.difference is None else each.difference.interval
    return "-" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def as_text(ablation: Ablation, summaries: Sequence[Summary], times: bool = True) -> str:
    """Aligned columns."""
    cells = columns(ablation, summaries, times)
    return table([[*cells], *([cell(each) for cell in cells.values()] for each in summaries)])


def as_markdown(ablation: Ablation, summaries: Sequence[Summary], times: bool = True) -> str:
    """A Markdown page: the plan, the table, and its reading."""
    cells = columns(ablation, summaries, times)
    rows = [[*cells], ["---", *["---:"] * (len(cells) - 1)]]
    rows += [[cell(each).replace("|", "\\|") for cell in cells.values()] for each in summaries]
    seeds = ", ".join(map(str, ablation.seeds))
    lines = [
        f"# {ablation.path.stem}",
        "",
        f"Base: {' '.join(ablation.base)}. Budget: {ablation.budget}. Seeds: {seeds}.",
    ]
    lines += ["", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, *remarks(ablation, summaries), ""])


def remarks(ablation: Ablation, summaries: Sequence[Summary]) -> list[str]:
    """Sentences that explain the table, and name missing runs."""
    several = len(ablation.seeds) > 1
    found = ["Loss: lowest validation loss in nats per token" + (", mean ± standard deviation over seeds." if several
             else " of a single seed, which says nothing about chance.")]  # fmt: skip
    if several:
        found.append(
            f"Difference: mean over seeds of the loss minus that of {ablation.reference} with the same seed, "
            "with Student's 95% interval."
        )
    planned = len(ablation.seeds)
    missing = [f"{each.name} ({each.runs} of {planned})" for each in summaries if each.runs < planned]
    return [*found, *([f"Unfinished: {', '.join(missing)}."] if missing else [])]


def as_csv(summaries: Sequence[Summary], times: bool = True) -> str:
    """All figures in full precision."""
    rows = [_figures(each) for each in summaries]
    names = [name for name in rows[0] if times or not name.startswith(TIMES)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(["" if row[name] is None else row[name] for name in names] for row in rows)
    return out.getvalue()


def _figures(each: Summary) -> dict[str, Any]:
    found: dict[str, Any] = {"variant": each.name, "runs": each.runs}
    for name, figure in (("val_loss", each.loss), ("bpb", each.bpb), ("excess", each.excess)):
        found |= {name: figure and figure.value, f"{name}_sd": figure and figure.spread}
    ends = (None, None) if each.difference is None else each.difference.interval or (None, None)
    found |= {"difference": each.difference and each.difference.value, "low": ends[0], "high": ends[1]}
    found |= {name: each.fixed.get(name) for name in ("parameters", "steps", "tokens", "flops")}
    for name, figure in (("tokens_per_sec", each.tokens_per_sec), ("seconds", each.seconds)):
        found |= {name: figure and figure.value, f"{name}_sd": figure and figure.spread}
    return found
