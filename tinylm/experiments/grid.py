"""The grid of a scaling law: networks of several widths trained with several budgets of computation, on one text.

A budget is a number of floating-point operations. Each network takes as many steps as the budget pays for, with a
learning rate that falls to zero with the last one; stopping a longer run early would measure something else.

Every result is one line of `results.jsonl`, written when its run has ended, so an interrupted grid can be resumed.

Everything else is fixed or follows from the width: two blocks, the fewest with which attention can copy a name (Olsson
et al. 2022), four heads, and `learning_rate`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinylm.checks import require
from tinylm.errors import DataError
from tinylm.experiments.plain_run import Texts, measure
from tinylm.files import append_text, parse_json, sync_file, write_text
from tinylm.model import ModelConfig
from tinylm.model.size import flops_per_token, parameter_count
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig

RESULTS = "results.jsonl"
LAYERS, HEADS = 2, 4
WARMUP = 20  # steps


def network(width: int, vocab_size: int, context: int, layers: int = LAYERS) -> ModelConfig:
    """The network of a width."""
    return ModelConfig(
        vocab_size=vocab_size, d_model=width, num_layers=layers, num_heads=HEADS, max_seq_len=context
    )  # fmt: skip


def learning_rate(width: int, steps: int) -> float:
    """The highest learning rate of a run: lower for wide networks and for long runs.

    The constant and the powers were fitted to two to four rates each at widths 32, 64 and 128, and at 64 with 1000 and
    3300 steps. A rate that suits short runs is too high for long ones, which then miss their lowest losses.
    """
    return round(0.006 * (64 / width) ** 0.8 * (1000 / steps) ** 0.5, 6)


class Point(NamedTuple):
    """A run to do."""

    width: int
    budget: float  # FLOPs
    steps: int
    seed: int
    layers: int = LAYERS

    def network(self, texts: Texts) -> ModelConfig:
        """The network."""
        return network(self.width, texts.data.vocab_size, texts.context, self.layers)

    def params(self, texts: Texts) -> int:
        """Parameters of the network."""
        return parameter_count(self.network(texts))

    def tokens(self, texts: Texts) -> int:
        """Targets to train on."""
        return self.steps * texts.batch_size * texts.context


@dataclass(frozen=True)
class Result:
    """A run that was done.

    Attributes:
        width: of the network
        params: parameters of the network
        budget: requested FLOPs
        steps: optimizer steps
        tokens: targets trained on
        flops: FLOPs spent, at most the budget
        lr: highest learning rate
        seed: of the first weights
        text: the text and its reading
        loss: validation loss, nats per token
        floor: lowest possible validation loss
        seconds: of training
        layers: of the network
    """

    width: int
    params: int
    budget: float
    steps: int
    tokens: int
    flops: float
    lr: float
    seed: int
    text: str
    loss: float
    floor: float
    seconds: float
    layers: int = LAYERS

    @property
    def point(self) -> Point:
        """The run."""
        return Point(self.width, self.budget, self.steps, self.seed, self.layers)


def plan(
    widths: Iterable[int],
    budgets: Iterable[float],
    texts: Texts,
    seed: int,
    steps: tuple[int, int],
    layers: int = LAYERS,
) -> list[Point]:
    """The runs of all widths and budgets, cheap ones first; `steps` are the fewest and the most that a run may take."""
    points = []
    for budget in sorted(budgets):
        for width in sorted(widths):
            once = Point(width, budget, 1, seed, layers)
            count = int(budget / (flops_per_token(once.network(texts)) * once.tokens(texts)))
            if steps[0] <= count <= steps[1]:
                points.append(once._replace(steps=count))
    return points


def run_point(point: Point, texts: Texts) -> Result:
    """Trains and evaluates one network."""
    config, lr, tokens = point.network(texts), learning_rate(point.width, point.steps), point.tokens(texts)
    optimizer = OptimizerConfig(name="muon", lr=lr, weight_decay=0.1, momentum=0.9)
    schedule = ScheduleConfig(name="linear", warmup_steps=min(WARMUP, point.steps // 2), min_lr=0.0)
    measured = measure(texts, config, optimizer, schedule, point.steps, point.seed)
    return Result(
        **point._asdict(), params=point.params(texts), tokens=tokens, flops=flops_per_token(config) * tokens, lr=lr,
        text=texts.name, loss=measured.loss, floor=measured.floor, seconds=round(measured.seconds, 1),
    )  # fmt: skip


def run_missing(
    points: Iterable[Point], texts: Texts, folder: Path, report: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Trains the runs whose results are not yet in `folder`, and returns the results of all `points`."""
    path = folder / RESULTS
    known = {each.point: each for each in read_results(path) if each.text == texts.name}
    found = []
    for point in points:
        if point not in known:
            known[point] = run_point(point, texts)
            append_text(path, json.dumps(asdict(known[point])) + "\n")
            sync_file(path)
            report(known[point])
        found.append(known[point])
    return found


def read_results(path: Path) -> list[Result]:
    """The results in a file, without a last line that a killed process left unfinished.

    Raises:
        DataError: if another line is not a result.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [*_results(whole, path)]


def _results(text: str, path: Path) -> Iterator[Result]:
    for number, line in enumerate(text.splitlines(), 1):
        values: Any = parse_json(line, f"{path}: line {number}")
        try:
            yield Result(**values)
        except TypeError as error:
            raise DataError(f"{path}: line {number}: is not a result of `tinylm scaling`") from error


def check_floor(results: Iterable[Result]) -> float:
    """The floor that all results have in common.

    Raises:
        ConfigError: if they have several.
    """
    floors = {round(each.floor, 9) for each in results}
    require(len(floors) == 1, f"the results have {len(floors)} different floors; use those of one text")
    return floors.pop()
