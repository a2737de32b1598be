"""A budget of `fit -c auto`: a time, a number of operations, or a number of parameters.

>>> Budget.read("1.5h"), Budget.read("1e15flops"), Budget.read("2PFLOPs")
(Budget(seconds=5400.0, flops=None, parameters=None), Budget(seconds=None, flops=1000000000000000.0, parameters=None), \
Budget(seconds=None, flops=2000000000000000.0, parameters=None))
"""

import re
from dataclasses import dataclass

from tinylm.errors import ConfigError

TIMES = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
LEAST = 20  # seconds that a run takes to start, measure and end
EXAMPLES = "as in 10min, 90s, 2h or 1e15flops"


@dataclass(frozen=True)
class Budget:
    """One of three limits."""

    seconds: float | None = None
    flops: float | None = None
    parameters: int | None = None

    @classmethod
    def read(cls, text: str) -> "Budget":
        """Reads `--budget`.

        Raises:
            ConfigError: if it is neither a time nor a number of operations, or too short a time.
        """
        found = re.fullmatch(NUMBER + r" *([a-z]*)", text.strip().lower())
        amount, unit = (float(found[1]), found[2]) if found else (0.0, "")
        operations = re.fullmatch(r"([kmgtpe]?)flops?", unit)
        if operations and amount > 0:
            return cls(flops=amount * SCALES[operations[1]])
        scale = TIMES.get(unit) or TIMES.get(unit.removesuffix("s"))
        if found is None or scale is None or amount <= 0:
            raise ConfigError(f"--budget must be a time or a number of operations, {EXAMPLES}, got {text!r}")
        if amount * scale < LEAST:
            raise ConfigError(
                f"--budget must be at least {LEAST} seconds, since a run takes as long to start and end, got {text!r}"
            )
        return cls(seconds=amount * scale)

    @classmethod
    def read_parameters(cls, text: str) -> "Budget":
        """Reads `--params`.

        >>> Budget.read_parameters("2M").parameters
        2000000
        """
        found = re.fullmatch(NUMBER + r" *([kmb]?)", text.strip().lower())
        if found is None or float(found[1]) * SCALES[found[2]] < 1:
            raise ConfigError(f"--params must be a number of parameters, as in 500k or 2M, got {text!r}")
        return cls(parameters=round(float(found[1]) * SCALES[found[2]]))
