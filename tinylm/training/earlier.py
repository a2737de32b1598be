"""Runs of earlier versions, in which `data.seed` drew both text and order; now `data.text_seed` draws the text."""

from pathlib import Path
from typing import Any

from tinylm.safe_yaml import read_yaml

CONFIG = "tinylm_config"  # the entry of a checkpoint with the whole config


def recorded_seed(run_folder: Path) -> int | None:
    """`data.seed` of a run, which earlier versions recorded as 0 where it was not given; None: `seed_everything`."""
    config = run_folder / "config.yaml"
    return read_yaml(config).get("data", {}).get("seed") if config.is_file() else None


def text_seed_remedy(earlier: dict[str, Any], text_seed: int) -> str | None:
    """The remedy for a changed text, if a version without `data.text_seed` generated it from `data.seed`.

    Args:
        earlier: the config in the checkpoint
        text_seed: the seed of the text now
    """
    data = earlier.get("data", {})
    if "text_seed" in data or data.get("seed", text_seed) == text_seed:
        return None
    return f"an earlier version generated it from data.seed; add --data.text_seed {data['seed']}"
