"""Grammars that write texts and know, exactly, how probable each text is.

A grammar is a set of rules. A rule lists its alternatives, equally likely or with weights; an alternative is text with
references in angle brackets:

    <place>        an alternative of the rule `place`, chosen anew
    <hero=name>    the same, remembered as `hero`; never a text that is remembered from the rule `name` already
    <hero>         the remembered text once more
    <hero.his>     an attribute of what is remembered
    <.his:her>     gives the alternative that it stands in the attribute `his`; writes nothing
    <Hero>         a capital letter in front: what is written begins with a capital

So what is said early can be asked for late. No rule contains itself: there are finitely many texts, each finite.

Left out: probabilities that depend on earlier choices in other ways, and a chart for very ambiguous grammars. `parse`
tries every way, which is quick where the next words tell the alternatives apart.
"""

import math
from bisect import bisect
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tinylm.data.grammar.rules import Draw, Entry, Recall, Rules, Symbol, capitalized, read_rules


class Choice(NamedTuple):
    """One choice of a derivation.

    Attributes:
        rule: where it was made
        text: the alternative as the grammar has it; of a rule of plain text, as the story has it
        probability: given all choices before
    """

    rule: str
    text: str
    probability: float


Derivation = tuple[Choice, ...]


def log_prob_of(derivation: Iterable[Choice]) -> float:
    """The log probability of a derivation, in nats."""
    return math.fsum(math.log(choice.probability) for choice in derivation)


Memory = dict[str, tuple[str, Entry]]  # variable -> the rule it was drawn from, and what was drawn


class Grammar(Rules):
    """Rules that write and read texts. Attributes, arguments and errors: those of `Rules`."""

    def __init__(self, rules: Mapping[str, Any], *, start: str | None = None, name: str = "grammar") -> None:
        super().__init__(rules, start=start, name=name)
        self._shares = {rule: tuple(each.probability for each in group) for rule, group in self.rules.items()} | {
            rule: tuple(entry.probability for entry in group) for rule, group in self.entries.items()
        }
        self._bounds = {rule: tuple(accumulate(shares)) for rule, shares in self._shares.items()}
        self._texts = {
            (rule, capital): tuple(capitalized(entry.text, capital) for entry in group)
            for rule, group in self.entries.items()
            for capital in (False, True)
        }

    def generate(self, random: Random) -> tuple[str, Derivation]:
        """A text and how it came about. Only `random.random()` is used, which gives the same on every platform."""
        text: list[str] = []
        choices: list[Choice] = []
        memory: Memory = {}
        todo: list[Symbol] = [Draw(self.start, None, False)]  # the next symbol is the last of the list
        while todo:
            symbol = todo.pop()
            if isinstance(symbol, str):
                text.append(symbol)
            elif isinstance(symbol, Recall):
                text.append(_recall(symbol, memory))
            elif isinstance(symbol, Draw) and symbol.rule in self.entries:
                taken = self._taken(symbol, memory)
                while (number := self._pick(symbol.rule, random)) in taken:
                    pass
                entry = self.entries[symbol.rule][number]
                choices.append(self._choice(symbol, number, taken))
                text.append(capitalized(entry.text, symbol.capital))
                if symbol.variable:
                    memory[symbol.variable] = (symbol.rule, entry)
            elif isinstance(symbol, Draw):
                chosen = self.rules[symbol.rule][self._pick(symbol.rule, random)]
                choices.append(Choice(symbol.rule, chosen.text, chosen.probability))
                todo.extend(reversed(chosen.symbols))
        return "".join(text), tuple(choices)

    def parse(self, text: str) -> list[Derivation]:
        """All derivations of a text: none if the grammar cannot write it, several if some choice leaves no trace.

        A depth-first search over (place in the text, what is still to be written, what is remembered).
        """
        found: list[Derivation] = []
        states: list[Any] = [(0, ((Draw(self.start, None, False),), 0, None), {}, None)]
        while states:
            at, todo, memory, trail = states.pop()
            while todo is not None and todo[1] == len(todo[0]):  # an alternative is through: on with what follows it
                todo = todo[2]
            if todo is None:
                if at == len(text):
                    found.append(_unwind(trail))
                continue
            symbol, rest = todo[0][todo[1]], (todo[0], todo[1] + 1, todo[2])
            if isinstance(symbol, Recall):
                symbol = _recall(symbol, memory)
            if isinstance(symbol, str):
                if text.startswith(symbol, at):
                    states.append((at + len(symbol), rest, memory, trail))
            elif symbol.rule in self.entries:
                taken = self._taken(symbol, memory)
                for number, written in enumerate(self._texts[symbol.rule, symbol.capital]):
                    if text.startswith(written, at) and number not in taken:
                        entry = self.entries[symbol.rule][number]
                        then = memory | {symbol.variable: (symbol.rule, entry)} if symbol.variable else memory
                        states.append((at + len(written), rest, then, (self._choice(symbol, number, taken), trail)))
            else:
                for each in self.rules[symbol.rule]:
                    if not isinstance(each.symbols[0], str) or text.startswith(each.symbols[0], at):
                        choice = Choice(symbol.rule, each.text, each.probability)
                        states.append((at, (each.symbols, 0, rest), memory, (choice, trail)))
        return found

    def log_prob(self, text: str) -> float:
        """The log probability of a text, in nats: exact, summed over all derivations; -inf if it has none."""
        logs = [log_prob_of(derivation) for derivation in self.parse(text)]
        largest = max(logs, default=-math.inf)
        return largest + math.log(math.fsum(math.exp(each - largest) for each in logs)) if logs else largest

    def _pick(self, rule: str, random: Random) -> int:
        bounds = self._bounds[rule]
        return min(bisect(bounds, random.random() * bounds[-1]), len(bounds) - 1)

    def _taken(self, symbol: Draw, memory: Memory) -> set[int]:
        """The entries of a rule that a variable cannot be, since others are."""
        if not symbol.variable:
            return set()
        taken = [entry for rule, entry in memory.values() if rule == symbol.rule]
        return {self.entries[symbol.rule].index(entry) for entry in taken}

    def _choice(self, symbol: Draw, number: int, taken: set[int]) -> Choice:
        shares = self._shares[symbol.rule]
        left = 1 - math.fsum(shares[other] for other in taken) if taken else 1
        return Choice(symbol.rule, self.entries[symbol.rule][number].text, shares[number] / left)


def load_grammar(path: str | Path) -> Grammar:
    """A grammar from its YAML file.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is no YAML, or no grammar.
    """
    return Grammar(read_rules(path), name=Path(path).name)


def _recall(symbol: Recall, memory: Memory) -> str:
    entry = memory[symbol.variable][1]
    return capitalized(entry.attributes[symbol.attribute] if symbol.attribute else entry.text, symbol.capital)


def _unwind(trail: tuple | None) -> Derivation:
    choices = []
    while trail is not None:
        choice, trail = trail
        choices.append(choice)
    return tuple(reversed(choices))
