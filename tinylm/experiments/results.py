"""The figures of trials, read from their run folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylm.experiments.trials import Trial
from tinylm.runs.compare import Row, read_run, reading
from tinylm.runs.folder import is_finished
from tinylm.runs.lineage import flop_counter, read_config
from tinylm.runs.metrics import read_metrics


@dataclass(frozen=True)
class Result:
    """The figures of one run. None: unknown, such as the floor of the user's own text.

    Attributes:
        name: name of the trial
        row: the row of `tinylm compare`: parameters, tokens, steps, val_loss, bpb, excess, seconds
        floor: the lowest possible validation loss, in nats per token
        flops: training FLOPs (`flops_per_token`)
    """

    name: str
    row: Row
    floor: float | None
    flops: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens per second, without validation and saving."""
        known = self.row.tokens is not None and self.row.seconds
        return self.row.tokens / self.row.seconds if known and self.row.tokens and self.row.seconds else None


def read_result(folder: Path) -> Result:
    """Reads the figures of a run folder.

    Raises:
        DataError: if its files are damaged.
    """
    row = read_run(folder)
    with reading(folder):
        config, metrics = read_config(folder), folder / "metrics.csv"
        columns = read_metrics(metrics) if metrics.is_file() else {}
        count = flop_counter(folder, config, columns)
        floors = columns.get("val/floor", ([], []))[1]
    flops = None if count is None else float(count([row.steps])[0])
    return Result(folder.name, row, floors[-1] if floors else None, flops)


def read_results(trials: Sequence[Trial], folder: Path) -> dict[str, Result]:
    """The figures of the trials that have finished, by name."""
    return {trial.name: read_result(folder / trial.name) for trial in trials if is_finished(folder / trial.name)}
