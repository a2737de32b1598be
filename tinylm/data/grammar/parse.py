"""Parsing with a grammar: all derivations of a text, and its exact log probability.

Left out: a chart for highly ambiguous grammars. The parser tries every derivation by depth-first search, which is fast
if the next words distinguish the alternatives.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.data.grammar.generate import Choice, Derivation, GenerativeRules, log_prob_of, recall
from tinylm.data.grammar.rules import Draw, Recall, capitalize, read_rules
from tinylm.errors import DataError

WORD = re.compile(r"\s?\S*")


def split_words(text: str) -> list[str]:
    """The words of a text, each with the white space before it.

    >>> split_words('"Oh!" said Ann.\\n')
    ['"Oh!"', ' said', ' Ann.', '\\n']
    """
    return [word for word in WORD.findall(text) if word]


class Grammar(GenerativeRules):
    """Rules that generate and parse texts."""

    @cached_property
    def _texts(self) -> dict[tuple[str, bool], tuple[str, ...]]:
        return {
            (rule, capital): tuple(capitalize(entry.text, capital) for entry in group)
            for rule, group in self.entries.items()
            for capital in (False, True)
        }

    def parse(self, text: str) -> list[Derivation]:
        """All derivations of a text: none if the grammar cannot generate it, several if it is ambiguous."""
        return self._search(text, lambda at, written, log_prob: None)

    def prefix_log_probs(self, text: str) -> np.ndarray:
        """The log probability that a generated text begins with `text[:k]`, in nats, for k from 0: float64 (n + 1,).

        Their differences are the losses of the best possible predictor of the next character (Shannon 1948).
        """
        found = np.full(len(text) + 1, -math.inf)
        found[0] = 0.0

        def see(at: int, written: str, log_prob: float) -> None:
            ends = slice(at + 1, at + _shared(written, text, at) + 1)
            found[ends] = np.logaddexp(found[ends], log_prob)

        self._search(text, see)
        return found

    def mistake(self, text: str) -> int | None:
        """Index of the first character that makes the text impossible; None if the grammar can generate the text.

        It is `len(text)` if every generated text that begins like this one is longer.
        """
        reach = 0

        def see(at: int, written: str, log_prob: float) -> None:
            nonlocal reach
            if at + len(written) > reach:
                reach = max(reach, at + _shared(written, text, at))

        return None if self._search(text, see) else reach

    def _search(self, text: str, see: Callable[[int, str, float], None]) -> list[Derivation]:
        """All derivations of a text, by depth-first search.

        A state is the position in the text, the symbols still to match, the variables, the choices so far and their log
        probability. Symbols still to match are a linked list of (alternative's symbols, next index, what follows the
        alternative). Before a string is compared with the text, `see` gets position, string and log probability.
        """
        found: list[Derivation] = []
        states: list[Any] = [(0, ((Draw(self.start),), 0, None), {}, None, 0.0)]
        while states:
            at, todo, variables, trail, log_prob = states.pop()
            while todo is not None and todo[1] == len(todo[0]):  # the alternative is matched: continue after it
                todo = todo[2]
            if todo is None:
                if at == len(text):
                    found.append(_unwind(trail))
                continue
            symbol, after = todo[0][todo[1]], (todo[0], todo[1] + 1, todo[2])
            if isinstance(symbol, Recall):
                symbol = recall(symbol, variables)
            if isinstance(symbol, str):
                see(at, symbol, log_prob)
                if text.startswith(symbol, at):
                    states.append((at + len(symbol), after, variables, trail, log_prob))
            elif symbol.rule in self.entries:
                excluded = self._excluded(symbol, variables)
                for number, written in enumerate(self._texts[symbol.rule, symbol.capital]):
                    if number in excluded or written[:1] not in ("", text[at : at + 1]):
                        continue
                    choice, entry = self._choice(symbol, number, excluded), self.entries[symbol.rule][number]
                    then = variables | {symbol.variable: (symbol.rule, entry)} if symbol.variable else variables
                    chosen = log_prob + math.log(choice.probability)
                    states.append((at, ((written,), 0, after), then, (choice, trail), chosen))
            else:
                for each in self.rules[symbol.rule]:
                    choice = Choice(symbol.rule, each.text, each.probability)
                    chosen = log_prob + math.log(each.probability)
                    states.append((at, (each.symbols, 0, after), variables, (choice, trail), chosen))
        return found

    def word_probabilities(self, text: str) -> Iterator[dict[str, float]]:
        """The probability of each possible next word, before every word of `split_words(text)` and at the end.

        These are the predictions of the best possible predictor: they are summed over all derivations that begin like
        the text, and know nothing of the words to come. The word `""` is the end of the text.

        Raises:
            DataError: at a word that continues no generated text.
        """
        states = self.start_states()
        for word in [*split_words(text), ""]:
            found = self.next_words(states)
            total = math.fsum(weight for weight, *_ in found.get(word, ()))
            if total == 0:
                raise DataError(f"{self.name}: generates no text that continues with {word!r}")
            yield {each: math.fsum(weight for weight, *_ in group) for each, group in found.items()}
            states = [(weight / total, *state) for weight, *state in found[word]]

    def start_states(self) -> list[Any]:
        """The states before the first word, for `next_words`."""
        return [(1.0, "", ((Draw(self.start),), 0, None), {})]

    def next_words(self, states: list[Any]) -> dict[str, list[Any]]:
        """Continues states by a word: word -> the states after it. The word `""` is the end of the text.

        A state is a probability, the text written but not yet read, and symbols and variables as in `_search`.
        """
        found: dict[str, list[Any]] = {}
        states = [*states]
        while states:
            weight, ahead, todo, variables = states.pop()
            while todo is not None and todo[1] == len(todo[0]):
                todo = todo[2]
            word = WORD.match(ahead)[0]  # pyright: ignore[reportOptionalSubscript] (matches anything)
            if len(word) < len(ahead) or todo is None:
                found.setdefault(word, []).append((weight, ahead[len(word) :], todo, variables))
                continue
            symbol, after = todo[0][todo[1]], (todo[0], todo[1] + 1, todo[2])
            if isinstance(symbol, Recall):
                symbol = recall(symbol, variables)
            if isinstance(symbol, str):
                states.append((weight, ahead + symbol, after, variables))
            elif symbol.rule in self.entries:
                excluded, shares = self._excluded(symbol, variables), self._shares[symbol.rule]
                scale = weight / self._left(symbol.rule, excluded)
                for number, written in enumerate(self._texts[symbol.rule, symbol.capital]):
                    if number not in excluded:
                        entry = self.entries[symbol.rule][number]
                        then = variables | {symbol.variable: (symbol.rule, entry)} if symbol.variable else variables
                        states.append((scale * shares[number], ahead + written, after, then))
            else:
                for each in self.rules[symbol.rule]:
                    states.append((weight * each.probability, ahead, (each.symbols, 0, after), variables))
        return found

    def log_prob(self, text: str) -> float:
        """The exact log probability of a text, in nats, summed over its derivations; -inf if there is none."""
        logs = [log_prob_of(derivation) for derivation in self.parse(text)]
        largest = max(logs, default=-math.inf)
        return largest + math.log(math.fsum(math.exp(each - largest) for each in logs)) if logs else largest


def _shared(written: str, text: str, at: int) -> int:
    """Length of the longest beginning of `written` that the text has at index `at`."""
    return sum(1 for _ in takewhile(bool, map(eq, written, text[at : at + len(written)])))


def _unwind(trail: tuple | None) -> Derivation:
    choices = []
    while trail is not None:
        choice, trail = trail
        choices.append(choice)
    return tuple(reversed(choices))


def load_grammar(path: str | Path) -> Grammar:
    """Reads a grammar from its YAML file; raises DataError if it is not a grammar."""
    return Grammar(read_rules(path), name=Path(path).name)
