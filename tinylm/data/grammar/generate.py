"""Generation from a grammar: a text, and the derivation that produced it."""

import math
from bisect import bisect
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import NamedTuple

from tinylm.data.grammar.rules import Draw, Entry, Recall, Rules, Symbol, capitalize


class Choice(NamedTuple):
    """One choice of a derivation.

    Attributes:
        rule: the rule whose alternative was chosen
        text: the alternative as written; for a plain rule, the generated text
        probability: given all earlier choices
    """

    rule: str
    text: str
    probability: float


Derivation = tuple[Choice, ...]
Variables = dict[str, tuple[str, Entry]]  # variable -> the rule it was drawn from, and its entry


def log_prob_of(derivation: Iterable[Choice]) -> float:
    """The log probability of a derivation, in nats."""
    return math.fsum(math.log(choice.probability) for choice in derivation)


class GenerativeRules(Rules):
    """Rules that generate texts."""

    @cached_property
    def _shares(self) -> dict[str, tuple[float, ...]]:
        groups = self.rules | self.entries
        return {rule: tuple(each.probability for each in group) for rule, group in groups.items()}

    @cached_property
    def _bounds(self) -> dict[str, tuple[float, ...]]:
        return {rule: tuple(accumulate(shares)) for rule, shares in self._shares.items()}

    def generate(self, random: Random) -> tuple[str, Derivation]:
        """A text and its derivation. Only `random.random()` is called: its numbers are the same on every platform."""
        text: list[str] = []
        choices: list[Choice] = []
        variables: Variables = {}
        stack: list[Symbol] = [Draw(self.start)]
        while stack:
            symbol = stack.pop()
            if isinstance(symbol, str):
                text.append(symbol)
            elif isinstance(symbol, Recall):
                text.append(recall(symbol, variables))
            elif isinstance(symbol, Draw) and symbol.rule in self.entries:
                excluded = self._excluded(symbol, variables)
                while (number := self._pick(symbol.rule, random)) in excluded:
                    pass
                entry = self.entries[symbol.rule][number]
                choices.append(self._choice(symbol, number, excluded))
                text.append(capitalize(entry.text, symbol.capital))
                if symbol.variable:
                    variables[symbol.variable] = (symbol.rule, entry)
            elif isinstance(symbol, Draw):
                chosen = self.rules[symbol.rule][self._pick(symbol.rule, random)]
                choices.append(Choice(symbol.rule, chosen.text, chosen.probability))
                stack.extend(reversed(chosen.symbols))
        return "".join(text), tuple(choices)

    def _pick(self, rule: str, random: Random) -> int:
        bounds = self._bounds[rule]
        return min(bisect(bounds, random.random() * bounds[-1]), len(bounds) - 1)

    def _excluded(self, symbol: Draw, variables: Variables) -> set[int]:
        """The entries that a variable must not take because other variables hold them."""
        if not symbol.variable:
            return set()
        return {self.entries[rule].index(entry) for rule, entry in variables.values() if rule == symbol.rule}

    def _left(self, rule: str, excluded: set[int]) -> float:
        """The probability that is left to the entries that may be drawn."""
        return 1 - math.fsum(self._shares[rule][other] for other in excluded) if excluded else 1

    def _choice(self, symbol: Draw, number: int, excluded: set[int]) -> Choice:
        share = self._shares[symbol.rule][number] / self._left(symbol.rule, excluded)
        return Choice(symbol.rule, self.entries[symbol.rule][number].text, share)


def recall(symbol: Recall, variables: Variables) -> str:
    """The text of a variable or of its attribute."""
    entry = variables[symbol.variable][1]
    return capitalize(entry.attributes[symbol.attribute] if symbol.attribute else entry.text, symbol.capital)
