"""One dial: the best run for a budget, chosen by the scaling law and the speed of this machine.

For a budget of time, the speed of a few sizes is measured briefly. The law predicts the loss that each size would reach
in the remaining time, and the best one is chosen. Sizes, learning rate and batch are those of the law's own runs
(grid.py). Options that the user sets are kept. With such options, or with another text, the law still chooses the size
but does not predict the loss.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.experiments.budget import Budget
from tinylm.experiments.devices import Device, this_machine
from tinylm.experiments.estimate import LIBRARIES, by_part, default_precision, resident_bytes, simulate
from tinylm.experiments.grid import HEADS, LAYERS, WARMUP, learning_rate
from tinylm.experiments.law import Expected, Law, load
from tinylm.experiments.measure import step_seconds
from tinylm.experiments.workload import Workload
from tinylm.model import ModelConfig, flops_per_token, parameter_count
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.training.precision import device_kind

BATCH = 4  # sequences of the law's runs
STORY = 103  # tokens, in the mean
EPOCHS = 2.0  # most passes over the stories
ENCODING = 0.0007  # seconds a story
FOR_DATA = 0.04  # share of the time that encoding may take
VAL_STORIES = 160  # as in small.yaml
START, END = 0.2, 0.4  # time before the first step, and after the last validation, as a multiple of the import time
VALIDATION = 0.06  # time of a validation's checkpoint and sample, as a multiple of the import time
FORWARD = 0.4  # time of a validation token, as a multiple of that of a training token
LEAST_STEPS = 40  # fewest steps of a run
WIDEST = 128  # largest width for which the learning rate was searched; wider networks transfer it by muP
WIDTHS = (*range(16, WIDEST, 8), *range(WIDEST, 2049, 32))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A run, and its expected results.

    Attributes:
        values: its config
        parameters: parameters of the network
        tokens: tokens to train on
        epochs: passes over the training text
        expected: validation loss in nats per token; None if the law does not predict it
        floor: the lowest possible loss; None if it is unknown
        seconds: from the start of the command to its end
        memory: bytes of the process at its peak
        reason: why no loss is expected
    """

    values: dict[str, Any]
    parameters: int
    tokens: int
    epochs: float
    expected: Expected | None
    floor: float | None
    seconds: float
    memory: int
    reason: str


class Dial:
    """The choice of a run for a budget.

    Args:
        budget: the budget
        given: options that the user sets, by dotted name
        started: when the command was started, in the seconds of `time.perf_counter`
    """

    def __init__(self, budget: Budget, given: dict[str, Any], started: float) -> None:
        self.budget, self.given, self.started = budget, given, started
        self.imports = max(time.perf_counter() - started, 1.0)  # seconds, the measure of this machine's speed
        self.law: Law = load()
        self.device: Device = this_machine(str(given.get("trainer.accelerator", "auto")))
        self.kind = "cpu" if self.device.on_cpu else device_kind("auto")
        self.speeds: dict[int, float] = {}  # seconds of a step by width

    # --- data

    @cached_property
    def corpus(self) -> str:
        """The text: the user's, or as many stories as suit the budget."""
        if "data.corpus" in self.given:
            return self.given["data.corpus"]
        stories = self._rough_tokens() / EPOCHS / STORY
        if self.budget.seconds is not None:
            stories = min(stories, FOR_DATA * self.budget.seconds / ENCODING)
        size = 10 ** math.floor(math.log10(max(stories, 1)))
        return f"stories:{min(max(round(stories / size) * size, 8000), 200_000)}"

    def _rough_tokens(self) -> float:
        """Tokens that the budget allows for training, at a guessed speed."""
        if self.budget.parameters is not None:
            return self._tokens_of_size(self.budget.parameters)
        flops = self.budget.flops or 3e10 * (self.budget.seconds or 0.0)
        return self.law.best(flops).tokens

    @cached_property
    def data_options(self) -> dict[str, Any]:
        """The options below `data`."""
        options: dict[str, Any] = {"corpus": self.corpus, "tokenizer": "bpe:2048", "batch_size": BATCH}
        if "data.corpus" not in self.given:
            share = round(VAL_STORIES / int(self.corpus.partition(":")[2]), 4)
            options["split"] = [round(1 - 2 * share, 4), share, share]
        return options | self._below("data")

    @cached_property
    def data(self) -> TextDataModule:
        """The data, encoded."""
        options = {name: value for name, value in self.data_options.items() if name != "num_workers"}
        module = TextDataModule(**{**options, "max_seq_len": self.context})
        module.content.num_tokens("train")
        return module

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.given.get("model.network.max_seq_len", self.law.context)

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.data_options["batch_size"] * self.context

    # --- sizes

    def network(self, width: int) -> ModelConfig:
        """The network of a width, with the options that the user sets."""
        own = self._below("model.network")
        return ModelConfig.from_dict({**self.shape(width), **own, "vocab_size": self.data.vocab_size})

    def shape(self, width: int) -> dict[str, Any]:
        """The options of the network of a width: those of the law up to `WIDEST`, beyond it those that muP requires."""
        shape = {"d_model": width, "num_layers": LAYERS, "num_heads": HEADS, "max_seq_len": self.context}
        if width <= WIDEST:
            return shape
        return shape | {"num_heads": HEADS * width // WIDEST, "mup_base_width": WIDEST}

    @property
    def widths(self) -> list[int]:
        """The widths to choose from."""
        fixed = self.given.get("model.network.d_model")
        heads = self.given.get("model.network.num_heads")
        return [fixed] if fixed else [width for width in WIDTHS if heads is None or width % (2 * heads) == 0]

    def workload(self, width: int) -> Workload:
        """A run of a width, for measurements."""
        batch = self.data_options["batch_size"]
        return Workload(
            network=self.network(width),
            optimizer=self.optimizer(width),
            loss_rows=self.given.get("model.loss_rows"),
            compiled=bool(self.given.get("model.compile", False)),
            batch_size=batch,
            rows=min(self.data_options.get("micro_batch_size") or batch, batch),
            context=self.context,
            steps=1,
            precision=self.given.get("trainer.precision"),
        )

    def optimizer(self, width: int, steps: int = 1000) -> OptimizerConfig:
        """The optimizer of a run, the same as in the law's runs."""
        lr = learning_rate(min(width, WIDEST), steps)
        options: dict[str, Any] = {"name": "muon", "lr": lr, "weight_decay": 0.1, "momentum": 0.9}
        return OptimizerConfig(**(options | self._below("model.optimizer")))

    def choose_width(self) -> int:
        """The width with the lowest expected loss."""
        if self.budget.parameters is not None:
            wanted = self.budget.parameters
            return min(self.widths, key=lambda width: abs(math.log(parameter_count(self.network(width)) / wanted)))
        if self.budget.flops is not None:
            flops = self.budget.flops
            return self._best_width(lambda width: flops / flops_per_token(self.network(width)))
        width = self.widths[0] if len(self.widths) == 1 else min(self.widths, key=lambda width: abs(width - 64))
        for _ in range(5):  # each measurement corrects the guess of the speed
            if width in self.speeds:
                break
            self.speeds[width] = step_seconds(self.workload(width), self.kind, self.precision(width), 0.6)
            width = self._best_width(self._tokens_in_time)
        return width

    def _best_width(self, tokens: Callable[[int], float]) -> int:
        """The width with the lowest expected loss, among those that could take enough steps."""
        counts = {width: tokens(width) for width in self.widths}
        usable = [width for width, count in counts.items() if count >= LEAST_STEPS * self.step_tokens]
        return min(
            usable or self.widths[:1],
            key=lambda width: self.law.loss(parameter_count(self.network(width)), max(counts[width], 1.0)),
        )

    def precision(self, width: int) -> str:
        """The precision of a width, as `fit` chooses it."""
        return self.given.get("trainer.precision") or default_precision(self.device, self.workload(width))

    # --- time

    def _tokens_in_time(self, width: int) -> float:
        """Tokens that a width could train on in the remaining time."""
        assert self.budget.seconds is not None
        left = self.budget.seconds - (time.perf_counter() - self.started) - self._seconds_beside(width)
        return max(left, 0.0) / self._guess_seconds(width) * self.step_tokens

    def _guess_seconds(self, width: int) -> float:
        """Seconds of a step: measured, or interpolated linearly in operations from the two nearest measurements."""
        if width in self.speeds:
            return self.speeds[width]
        cost = {each: self._flops(each) for each in self.speeds}
        near = sorted(cost, key=lambda each: abs(math.log(cost[each] / self._flops(width))))[:2]
        first = near[0]
        if len(near) == 1:  # larger matrices compute faster per operation
            return self.speeds[first] * (self._flops(width) / cost[first]) ** 0.7
        slope = (self.speeds[near[1]] - self.speeds[first]) / (cost[near[1]] - cost[first])
        guess = self.speeds[first] + max(slope, 0.0) * (self._flops(width) - cost[first])
        return max(guess, self.speeds[first] * min(1.0, self._flops(width) / cost[first]))

    def _flops(self, width: int) -> int:
        return flops_per_token(self.network(width)) * self.step_tokens

    @property
    def validations(self) -> int:
        """Number of validations."""
        return 2 if (self.budget.seconds or 0) < 1200 else 5

    def _seconds_beside(self, width: int) -> float:
        """Seconds of a run in addition to its steps."""
        seconds = (START + END) * self.imports
        if self.data.content.has_validation:
            tokens = FORWARD * self._guess_seconds(width) / self.step_tokens * self.data.content.num_tokens("val")
            seconds += self.validations * (VALIDATION * self.imports + tokens)
        return seconds

    # --- the choice

    def choose(self) -> Choice:
        """Chooses the run.

        Raises:
            ConfigError: if the time is too short for the data.
        """
        width = self.choose_width()
        memory, budget = self._memory(width), self.budget
        spend = min(max(0.02 * (budget.seconds or 60.0), 1.5), 10.0)
        self.speeds[width] = step = step_seconds(self.workload(width), self.kind, self.precision(width), spend)
        beside = self._seconds_beside(width)
        if budget.seconds is not None:
            steps = int(self._tokens_in_time(width) / self.step_tokens)
            if steps < 1:
                took = time.perf_counter() - self.started + beside
                raise ConfigError(f"--budget: start, data and validation alone take {took:.0f} s; give more time")
        else:
            steps = max(1, round(self._tokens(width) / self.step_tokens))
        network = self.network(width)
        tokens, size = steps * self.step_tokens, parameter_count(network)
        floor = self.data.floors["val"].nats_per_token if "val" in self.data.floors else None
        reason = self._no_promise()
        expected = None
        if not reason and floor is not None:
            shift = floor - self.law.constants.floor
            expected = Expected(*(value + shift for value in self.law.expect(size, tokens)))
        return Choice(
            values=self._values(width, steps),
            parameters=size,
            tokens=tokens,
            epochs=tokens / self.data.content.num_tokens("train"),
            expected=expected,
            floor=floor,
            seconds=time.perf_counter() - self.started + beside + steps * step,
            memory=memory,
            reason=reason,
        )

    def _tokens(self, width: int) -> float:
        """Tokens of a run whose time is not limited."""
        if self.budget.flops is not None:
            return self.budget.flops / flops_per_token(self.network(width))
        return self._tokens_of_size(parameter_count(self.network(width)))

    def _tokens_of_size(self, parameters: int) -> float:
        """Tokens for which a size is the best of all runs of the same cost."""
        low, high = 1e6, 1e24
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.law.best(middle).params < parameters else (low, middle)
        return self.law.best(low).tokens

    def _memory(self, width: int) -> int:
        workload = self.workload(width)
        step = simulate(workload, self.precision(width))
        return sum(by_part(step, "one device", workload, self.device, resident_bytes() + LIBRARIES).values())

    def _no_promise(self) -> str:
        """The reason why the law does not predict the loss; empty if it does."""
        if not str(self.corpus).startswith("stories"):
            return "the law holds for the built-in stories"
        of_law = ("data.corpus", "model.network.d_model", "data.micro_batch_size", "data.num_workers", "data.cache_dir")
        names = [name for name in self.given if name.startswith(("model.", "data.")) and name not in of_law]
        return f"the law does not cover {names[0]}={self.given[names[0]]}" if names else ""

    def _values(self, width: int, steps: int) -> dict[str, Any]:
        """The config."""
        optimizer = self.optimizer(width, steps)
        values: dict[str, Any] = {
            "model": {
                "network": self.shape(width),
                "optimizer": {
                    "name": optimizer.name,
                    "lr": optimizer.lr,
                    "weight_decay": optimizer.weight_decay,
                    "momentum": optimizer.momentum,
                },
                "schedule": {"name": "linear", "warmup_steps": min(WARMUP, steps // 2), "min_lr": 0.0},
            },
            "data": self.data_options,
            "run": {"sample_tokens": 120},
            "trainer": {
                "max_steps": steps,
                "gradient_clip_val": 1.0,
                "val_check_interval": max(1, math.ceil(steps / self.validations)),
                "check_val_every_n_epoch": None,
                "log_every_n_steps": max(1, min(50, steps // 10)),
            },
        }
        if not self.device.on_cpu:
            values["trainer"]["devices"] = 1  # whose speed was measured
        for name, value in self.given.items():
            *groups, last = name.split(".")
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
        return values

    def _below(self, group: str) -> dict[str, Any]:
        """The options that the user sets in a group."""
        prefix = f"{group}."
        return {name.removeprefix(prefix): value for name, value in self.given.items() if name.startswith(prefix)}
