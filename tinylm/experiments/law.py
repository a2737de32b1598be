"""The scaling law of the built-in stories: the loss to expect of a size and a number of tokens, and the best of both.

    L(N, D) = E + A / N^a + B / D^b

N counts all parameters, the embedding included: it is tied to the output projection, whose products are computed for
every token, and at these sizes it is half of the network. D counts the training targets. A run costs
D times `flops_per_token`, which is 6 N and the products of attention. E is the entropy of the text.

`tinylm scaling` measures the runs and writes the constants to scaling.json; stories_law.json is the one for `stories`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinylm.checks import require
from tinylm.errors import DataError
from tinylm.experiments.fit import Constants, interval
from tinylm.experiments.grid import Result, network
from tinylm.files import read_json
from tinylm.model.size import flops_per_token, parameter_count

STORIES = Path(__file__).with_name("stories_law.json")
WIDTHS = range(8, 2049, 8)


class Expected(NamedTuple):
    """A loss that the law predicts, with the interval that contains 90% of single runs."""

    loss: float
    low: float
    high: float


class Best(NamedTuple):
    """The best use of a budget.

    Attributes:
        params: parameters of the network, N
        tokens: tokens to train on, D
        expected: the loss to expect
    """

    params: float
    tokens: float
    expected: Expected


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        constants: E, A, a, B, b
        samples: constants of fits to resampled runs
        residuals: logarithms of measured excess over expected excess, of the fitted runs
        vocab_size: tokens in the vocabulary
        context: tokens in a window
        layers: of the networks
    """

    constants: Constants
    samples: Sequence[Constants]
    residuals: Sequence[float]
    vocab_size: int
    context: int
    layers: int

    def loss(self, params: float, tokens: float) -> float:
        """Expected loss in nats per token."""
        return self.constants.loss(params, tokens)

    def expect(self, params: float, tokens: float) -> Expected:
        """Expected loss with its interval, since the fit is uncertain and every run deviates from it."""
        floor = self.constants.floor
        excess = np.array([each.loss(params, tokens) - floor for each in self.samples])
        low, high = interval((floor + np.outer(excess, np.exp(self.residuals))).ravel().tolist())
        return Expected(self.loss(params, tokens), low, high)

    def best(self, flops: float) -> Best:
        """The size and number of tokens with the lowest expected loss for a budget of `flops`."""
        params, tokens = self._optimum(self.constants, flops)
        return Best(params, tokens, self.expect(params, tokens))

    def tokens_of_size(self, params: float) -> float:
        """Tokens for which a size is the best of all runs of the same cost."""
        low, high = 1e6, 1e24
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.best(middle).params < params else (low, middle)
        return self.best(low).tokens

    def flops(self, params: float, tokens: float) -> float:
        """Operations of training a network of the standard shape."""
        log_n, log_cost = self._costs
        return tokens * float(np.exp(np.interp(np.log(params), log_n, log_cost)))

    @cached_property
    def _costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of parameters and of operations per token of networks of the standard shape."""
        sizes = [network(width, self.vocab_size, self.context, self.layers) for width in WIDTHS]
        return np.log([parameter_count(size) for size in sizes]), np.log([flops_per_token(size) for size in sizes])

    def _optimum(self, constants: Constants, flops: float) -> tuple[float, float]:
        require(flops > 0, f"a budget must be positive, got {flops:g} FLOPs")
        log_n, log_cost = self._costs
        n = np.linspace(log_n[0], log_n[-1], 4001)
        d = np.log(flops) - np.interp(n, log_n, log_cost)
        size, data = constants.size_factor * np.exp(-constants.size_power * n), np.exp(-constants.data_power * d)
        best = int(np.argmin(size + constants.data_factor * data))
        return float(np.exp(n[best])), float(np.exp(d[best]))

    def to_dict(self) -> dict[str, Any]:
        """The law as JSON."""
        return {
            "constants": self.constants._asdict(),
            "samples": [[*each] for each in self.samples],
            "residuals": [*self.residuals],
            "vocab_size": self.vocab_size,
            "context": self.context,
            "layers": self.layers,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "Law":
        """The law of `to_dict`; DataError, naming `source`, for anything else."""
        try:
            constants, samples = Constants(**values["constants"]), [Constants(*each) for each in values["samples"]]
            sizes = (values[name] for name in ("vocab_size", "context", "layers"))
            return cls(constants, samples, values["residuals"], *sizes)
        except (KeyError, TypeError) as error:
            raise DataError(f"{source}: is not a law of `tinylm scaling`") from error


def load(path: str | Path = STORIES) -> Law:
    """The law of all runs of a study, by default that of the built-in stories; DataError for another file."""
    return Law.from_dict(_read(path, "law_of_all"), str(path))


def load_results(path: str | Path = STORIES) -> list[Result]:
    """The runs of a study, by default that of the built-in stories; DataError for another file."""
    try:
        return [Result(**each) for each in _read(path, "results")]
    except TypeError as error:
        raise DataError(f"{path}: is not a report of `tinylm scaling`") from error


def _read(path: str | Path, name: str) -> Any:
    values = read_json(path)
    if not isinstance(values, dict) or name not in values:
        raise DataError(f"{path}: is not a report of `tinylm scaling`; take its scaling.json")
    return values[name]
