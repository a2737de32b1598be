"""Figures of the run to which a model belongs, for its model card."""

from pathlib import Path
from typing import Any

from tinylm.errors import TinyLMError, notice
from tinylm.runs.compare import read_run
from tinylm.runs.provenance import bundle_record
from tinylm.safe_yaml import read_yaml


def run_figures(model: Path) -> dict[str, Any]:
    """Figures and config of the run to which a model belongs, for the model card; empty if there is no run."""
    run = {"model": model.parent, "checkpoints": model.parent.parent}.get(
        model.name if model.is_dir() else model.parent.name, model
    )
    if not (run / "config.yaml").is_file():
        return {}
    try:
        row, config = read_run(run), read_yaml(run / "config.yaml")
    except TinyLMError as error:
        notice(f"the model card has no figures of the run: {error}")
        return {}
    data = config.get("data", {})
    corpus = data.get("corpus")
    if isinstance(corpus, dict):  # a mixture
        corpus = ", ".join(f"{name}: {source}" for name, source in corpus.items())
    recorded = row.steps > 0  # a run without metrics.csv has only its config
    figures = {
        "data": data.get("pairs") or corpus,
        "base model": config.get("model", {}).get("init_from"),
        "steps": f"{row.steps:,.0f}" + (f" of {row.planned:,}" if row.planned else "") if recorded else None,
        "training tokens": f"{row.tokens:,.0f}" if recorded and row.tokens is not None else None,
        "training seconds": row.seconds,
        "lowest validation loss": row.val_loss,
        "bits per byte": row.bpb,
        "excess over the loss floor": row.excess,
    }
    found = {name: value for name, value in figures.items() if value is not None}
    return {**found, **bundle_record(run), "config.yaml": (run / "config.yaml").read_text(encoding="utf-8")}
