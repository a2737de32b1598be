"""The number of steps that a budget gives each variant, kept in the plan file for a resumed ablation.

Tokens, FLOPs and seconds of a step are taken from a short run of each variant, which knows the vocabulary of the text,
the architecture of a base model, and the speed of the machine. Tokens and FLOPs are exact (`flops_per_token`).
"""

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinylm.errors import CannotCreateError, ConfigError, notice
from tinylm.experiments.ablation import Ablation, Variant
from tinylm.experiments.runner import run_trials
from tinylm.experiments.trials import planned_options, what_matters
from tinylm.files import TEMPORARY, locked, make_folder, read_json, sha256_json, write_json
from tinylm.runs.lineage import network_config, planned_tokens, read_config
from tinylm.runs.metrics import read_metrics

PLAN, LOCK = "plan.json", ".plan.lock"
FORMAT = 1
WARM_UP, EVERY = 40, 5
"""Steps of the run that measures seconds, and of each row of its metrics.csv; the first half is left out."""


def plan_lengths(ablation: Ablation, folder: Path, jobs: int = 1, words: Iterable[str] = ()) -> dict[str, int]:
    """The number of steps of each variant, read from the plan file if it has them.

    Args:
        ablation: the ablation
        folder: its folder
        jobs: runs at a time
        words: further words of the command line of `fit`

    Raises:
        CannotCreateError: if the plan file belongs to another budget or another program.
        ConfigError: if a variant cannot be trained, or its steps have no fixed number of tokens.
    """
    make_folder(folder)
    with locked(folder / LOCK):
        plan = _read_plan(folder / PLAN, ablation)
        keys = {each.name: _key(ablation, each) for each in ablation.variants}
        known = {name: entry for name, entry in plan["variants"].items() if entry["key"] == keys.get(name)}
        missing = [each for each in ablation.variants if each.name not in known]
        if missing:
            known |= {name: {"key": keys[name], **costs} for name, costs in
                      _measure(ablation, missing, folder, jobs, tuple(words)).items()}  # fmt: skip
            write_json(folder / PLAN, {**plan, "variants": {**plan["variants"], **known}})
    return {each.name: known[each.name]["steps"] for each in ablation.variants}


def known_lengths(ablation: Ablation, folder: Path) -> dict[str, int]:
    """The number of steps of the variants that the plan file names; nothing is measured or written."""
    plan = _read_plan(folder / PLAN, ablation)["variants"]
    return {each.name: plan[each.name]["steps"] for each in ablation.variants if each.name in plan}


def _key(ablation: Ablation, variant: Variant) -> str:
    return sha256_json(what_matters(planned_options(ablation.trial(variant, "x"))))


def _read_plan(path: Path, ablation: Ablation) -> dict[str, Any]:
    """The plan file, or a new plan."""
    budget = {ablation.budget.unit: ablation.budget.amount}
    if not path.is_file():
        return {"format": FORMAT, "ablation": ablation.path.name, "budget": budget, "variants": {}}
    plan = read_json(path)
    if not isinstance(plan, dict) or plan.get("format") != FORMAT or not isinstance(plan.get("variants"), dict):
        raise CannotCreateError(f"{path}: exists and is not a plan of tinylm; choose another --out")
    if plan["budget"] != budget:
        raise CannotCreateError(f"{path}: the budget is {plan['budget']} there, {budget} now; choose another --out")
    return plan


def _measure(
    ablation: Ablation, variants: Sequence[Variant], folder: Path, jobs: int, words: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """The number of steps of variants, with the costs of a step from which it follows."""
    unit, amount = ablation.budget.unit, ablation.budget.amount
    if unit == "steps":
        return {each.name: {"steps": int(amount)} for each in variants}
    steps = WARM_UP if unit == "seconds" else 1
    notice(f"measuring a step of {', '.join(each.name for each in variants)}")
    trials = [
        ablation.trial(each, each.name, words, seed_everything=ablation.seeds[0], trainer__max_steps=steps,
                       trainer__max_epochs=-1, trainer__limit_val_batches=1, trainer__log_every_n_steps=EVERY,
                       trainer__logger=[], run__sample_tokens=0)
        for each in variants
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as place:
        outcomes = run_trials(trials, Path(place), jobs, report=lambda _: None)
        for outcome in outcomes:
            if outcome.code:
                raise ConfigError(f"{ablation.path}: {outcome.trial.name} cannot be trained: {outcome.problem}")
        costs = {each.name: _cost(Path(place) / each.name, unit, each.name) for each in variants}
    return {name: {"steps": max(1, int(amount // cost)), f"{unit}_per_step": cost} for name, cost in costs.items()}


def _cost(run: Path, unit: str, name: str) -> float:
    """Tokens, FLOPs or seconds of a step of a run."""
    config = read_config(run)
    if unit == "seconds":
        rows = zip(*read_metrics(run / "metrics.csv")["perf/step_seconds"], strict=True)
        return statistics.median(seconds for step, seconds in rows if step > WARM_UP // 2)
    planned, network = planned_tokens(config), network_config(config)
    if planned is None or network is None or config["data"].get("batch_schedule"):
        raise ConfigError(f"budget.{unit}: the tokens of a step of {name} vary, or are unknown; give steps or seconds")
    tokens = float(planned(1))
    if unit == "tokens":
        return tokens
    from tinylm.model import flops_per_token  # PyTorch takes a second

    return tokens * flops_per_token(network)
