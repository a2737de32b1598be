"""One dial: the best run for a budget, chosen by the scaling law and the speed of this machine.

For a budget of time, the speed of a few sizes is measured briefly. The law predicts the loss that each size would reach
in the remaining time, and the best one is chosen (candidates.py has the sizes). With options that the user sets, or
with another text, the law still chooses the size but does not predict the loss.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinylm.errors import ConfigError
from tinylm.experiments.budget import Budget
from tinylm.experiments.candidates import Candidates
from tinylm.experiments.devices import Device, this_machine
from tinylm.experiments.estimate import LIBRARIES, by_part, resident_bytes, simulate
from tinylm.experiments.law import Expected, Law, load
from tinylm.experiments.measure import step_seconds
from tinylm.training.time_budget import FORWARD

START, END = 0.2, 0.4  # time before the first step, and after the last validation, as a multiple of the import time
VALIDATION = 0.06  # time of a validation's checkpoint and sample, as a multiple of the import time
LEAST_STEPS = 40  # fewest steps of a run
ENOUGH_STEPS = 1000  # of a larger batch, which then learns as much per token
FULL = 1.0  # seconds of a step that occupies the device fully
BRIEF = 0.6  # seconds of a measurement that guides the choice


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
        seconds: from the start of the command to its end, which a budget of time fixes
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
        self.budget, self.started = budget, started
        self.imports = max(time.perf_counter() - started, 1.0)  # seconds, the measure of this machine's speed
        self.law: Law = load()
        self.device: Device = this_machine(str(given.get("trainer.accelerator", "auto")))
        self.runs = Candidates(budget, given, self.law, self.device)
        self.speeds: dict[int, float] = {}  # seconds of a step by width, with the present batch

    # --- batch and width

    def choose_width(self) -> int:
        """The best width, and the best batch, which `runs` keeps.

        For a budget of time both are those with the lowest expected loss: most devices process more tokens per second
        in larger batches. For any other budget the batch is the fastest one.
        """
        runs = self.runs
        width = self._width_of_batch(min(runs.widths, key=lambda width: abs(width - 64)))
        for larger in runs.larger_batches:
            if self._seconds(width) > FULL:
                break
            smaller, speeds, merit = runs.batch, self.speeds, self._merit(width)
            runs.batch, self.speeds = larger, {}
            other = self._width_of_batch(width)
            if self._tokens(other) < ENOUGH_STEPS * runs.step_tokens or self._merit(other) <= merit:
                runs.batch, self.speeds = smaller, speeds
                break
            width = other
        return width

    def _merit(self, width: int) -> float:
        """The merit of a width and the present batch: a low loss if time is limited, tokens per second if not."""
        if self.budget.seconds is not None:
            return -self.law.loss(self.runs.parameters(width), max(self._tokens(width), 1.0))
        return self.runs.step_tokens / self._seconds(width)

    def _width_of_batch(self, first: int) -> int:
        """The width with the lowest expected loss for the present batch, of which `first` is measured first."""
        budget, runs = self.budget, self.runs
        if (wanted := budget.parameters) is not None:
            return min(runs.widths, key=lambda width: abs(math.log(runs.parameters(width) / wanted)))
        if (flops := budget.flops) is not None:
            return self._best_width(lambda width: flops / runs.flops(width))
        width = first
        for _ in range(5):  # each measurement corrects the guess of the speed
            if width in self.speeds:
                break
            self._measure(width, BRIEF)
            width = self._best_width(self._tokens_in_time)
        return width

    def _best_width(self, tokens: Callable[[int], float]) -> int:
        """The width with the lowest expected loss, among those that could take enough steps."""
        runs, counts = self.runs, {width: tokens(width) for width in self.runs.widths}
        least = ENOUGH_STEPS if runs.batch in runs.larger_batches else LEAST_STEPS
        usable = [width for width, count in counts.items() if count >= least * runs.step_tokens]
        widths = usable or runs.widths[:1]
        return min(widths, key=lambda width: self.law.loss(runs.parameters(width), max(counts[width], 1.0)))

    def _seconds(self, width: int) -> float:
        """Seconds of a step, measured unless they have been."""
        return self.speeds.get(width) or self._measure(width, BRIEF)

    def _measure(self, width: int, spend: float) -> float:
        """Measures the seconds of a step, for about as many seconds as `spend`."""
        runs = self.runs
        self.speeds[width] = step_seconds(runs.workload(width), runs.kind, runs.precision(width), spend)
        return self.speeds[width]

    # --- time

    def _tokens_in_time(self, width: int) -> float:
        """Tokens that a width could train on in the remaining time."""
        assert self.budget.seconds is not None
        left = self.budget.seconds - (time.perf_counter() - self.started) - self._seconds_beside(width)
        return max(left, 0.0) / self._guess_seconds(width) * self.runs.step_tokens

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
        return self.runs.flops(width) * self.runs.step_tokens

    def _seconds_beside(self, width: int) -> float:
        """Seconds of a run in addition to its steps."""
        seconds, content = (START + END) * self.imports, self.runs.data.content
        if content.has_validation:
            tokens = FORWARD * self._guess_seconds(width) / self.runs.step_tokens * content.num_tokens("val")
            seconds += self.runs.validations * (VALIDATION * self.imports + tokens)
        return seconds

    # --- the choice

    def choose(self) -> Choice:
        """Chooses the run.

        Raises:
            ConfigError: if the time is too short for the data.
        """
        width = self.choose_width()
        memory, budget, runs = self._memory(width), self.budget, self.runs
        step = self._measure(width, 1.5)
        beside = self._seconds_beside(width)
        if budget.seconds is not None:
            steps = int(self._tokens_in_time(width) / runs.step_tokens)
            if steps < 1:
                took = time.perf_counter() - self.started + beside
                raise ConfigError(f"--budget: start, data and validation alone take {took:.0f} s; give more time")
        else:
            steps = max(1, round(self._tokens(width) / runs.step_tokens))
        tokens, size = steps * runs.step_tokens, runs.parameters(width)
        floor = runs.data.floors["val"].nats_per_token if "val" in runs.data.floors else None
        reason = runs.why_unpredicted()
        expected = None
        if not reason and floor is not None:
            shift = floor - self.law.constants.floor
            expected = Expected(*(value + shift for value in self.law.expect(size, tokens)))
        return Choice(
            values=runs.values(width, steps),
            parameters=size,
            tokens=tokens,
            epochs=tokens / runs.data.content.num_tokens("train"),
            expected=expected,
            floor=floor,
            seconds=budget.seconds or time.perf_counter() - self.started + beside + steps * step,
            memory=memory,
            reason=reason,
        )

    def _tokens(self, width: int) -> float:
        """Tokens of a run."""
        if self.budget.seconds is not None:
            return self._tokens_in_time(width)
        if self.budget.flops is not None:
            return self.budget.flops / self.runs.flops(width)
        return self.law.tokens_of_size(self.runs.parameters(width))

    def _memory(self, width: int) -> int:
        workload = self.runs.workload(width)
        step = simulate(workload, self.runs.precision(width))
        return sum(by_part(step, "one device", workload, self.device, resident_bytes() + LIBRARIES).values())
