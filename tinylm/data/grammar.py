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
import re
from bisect import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

import yaml

from tinylm.errors import DataError, MissingInputError, did_you_mean
from tinylm.files import sha256_json

MAX_ENTRIES = 10_000  # texts of a rule that is listed, and can be remembered


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


# --- what an alternative is made of: literal text, a `str`, and references


class Draw(NamedTuple):
    """`<rule>` or `<variable=rule>`."""

    rule: str
    variable: str | None
    capital: bool


class Recall(NamedTuple):
    """`<variable>` or `<variable.attribute>`."""

    variable: str
    attribute: str | None
    capital: bool


class Give(NamedTuple):
    """`<.attribute:text>`."""

    attribute: str
    text: str


Symbol = str | Draw | Recall | Give


class Alternative(NamedTuple):
    """One alternative of a rule, as written and as compiled."""

    text: str
    symbols: tuple[Symbol, ...]
    probability: float


@dataclass(frozen=True)
class Entry:
    """One text that a rule of plain text can write, however its rules are nested."""

    text: str
    probability: float
    attributes: dict[str, str] = field(default_factory=dict)


Memory = dict[str, tuple[str, Entry]]  # variable -> the rule it was drawn from, and what was drawn


class Grammar:
    """A compiled and checked grammar.

    Attributes:
        name: what errors call it
        start: the rule that a whole text is made by
        rules: rule -> its alternatives
        entries: rule of plain text -> all that it can write
        sources: variable -> the rules that it is drawn from
        fingerprint: SHA-256 of all that decides texts and probabilities
    """

    def __init__(self, rules: Mapping[str, Any], *, start: str | None = None, name: str = "grammar") -> None:
        """Compiles rules.

        Args:
            rules: rule -> a list of alternatives, or a mapping of alternatives to weights
            start: the rule to begin with; by default the first
            name: of the grammar, for errors

        Raises:
            DataError: if a rule is not of this form, refers to what is not there, or contains itself.
        """
        self.name = name
        weights = {rule: self._weights(rule, alternatives) for rule, alternatives in self._mapping(rules).items()}
        self.start = next(iter(weights)) if start is None else start
        if self.start not in weights:
            self._fail(f"start: no rule {self.start!r}{did_you_mean(self.start, weights)}")
        self.fingerprint = sha256_json([self.start, [[rule, list(each.items())] for rule, each in weights.items()]])
        self.rules = {rule: self._compile(rule, each, set(weights)) for rule, each in weights.items()}
        self.entries: dict[str, tuple[Entry, ...]] = {}
        for rule in self.rules:
            self._find_entries(rule, ())
        self.sources: dict[str, set[str]] = {}
        self._check_references()
        self._check_memory(self.start, frozenset(), frozenset(), {})
        self._shares = {rule: tuple(each.probability for each in group) for rule, group in self.rules.items()} | {
            rule: tuple(entry.probability for entry in group) for rule, group in self.entries.items()
        }
        self._bounds = {rule: tuple(accumulate(shares)) for rule, shares in self._shares.items()}
        self._texts = {
            (rule, capital): tuple(_capital(entry.text, capital) for entry in group)
            for rule, group in self.entries.items()
            for capital in (False, True)
        }

    # --- writing and reading

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
                text.append(_capital(entry.text, symbol.capital))
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

    # --- compiling and checking

    def _fail(self, problem: str) -> NoReturn:
        raise DataError(f"{self.name}: {problem}")

    def _mapping(self, rules: Any) -> Mapping[str, Any]:
        if not isinstance(rules, Mapping) or not rules:
            self._fail("a grammar is a mapping of rules to their alternatives")
        for rule in rules:
            if not isinstance(rule, str) or not re.fullmatch(r"[a-z_]\w*", rule):
                self._fail(f"a rule's name is letters, digits and _ and begins with a small letter, got {rule!r}")
        return rules

    def _weights(self, rule: str, alternatives: Any) -> dict[str, float]:
        if isinstance(alternatives, list):
            repeated = {str(each) for each in alternatives if alternatives.count(each) > 1}
            if repeated:
                self._fail(f"{rule}: {sorted(repeated)[0]!r} is there twice; give weights instead")
            alternatives = dict.fromkeys(map(self._plain, alternatives), 1)
        if not isinstance(alternatives, Mapping) or not alternatives:
            self._fail(f"{rule}: must be a list of alternatives, or a mapping of alternatives to weights")
        for text, weight in alternatives.items():
            if type(weight) not in (int, float) or not 0 < weight < math.inf:
                self._fail(f"{rule}: the weight of {text!r} must be a positive number, got {weight!r}")
        return {self._plain(text): weight for text, weight in alternatives.items()}

    def _plain(self, text: Any) -> str:
        if not isinstance(text, str):
            self._fail(f"{text!r} is not a text; put it in quotes")
        return text

    def _compile(self, rule: str, weights: dict[str, float], rules: set[str]) -> tuple[Alternative, ...]:
        total = math.fsum(weights.values())
        return tuple(
            Alternative(text, tuple(self._symbols(rule, text, rules)) or ("",), weight / total)
            for text, weight in weights.items()
        )

    def _symbols(self, rule: str, text: str, rules: set[str]) -> Iterable[Symbol]:
        for number, part in enumerate(re.split(r"<([^<>]*)>", text)):
            if number % 2:
                yield self._reference(rule, part, rules)
            elif "<" in part or ">" in part:
                self._fail(f"{rule}: < and > must enclose a reference, in {text!r}")
            elif part:
                yield part

    def _reference(self, rule: str, part: str, rules: set[str]) -> Symbol:
        if given := re.fullmatch(r"\.(\w+):(.*)", part, re.DOTALL):
            return Give(*given.groups())
        found = re.fullmatch(r"(\w+)(?:=(\w+)|\.(\w+))?", part)
        if not found:
            self._fail(
                f"{rule}: <{part}> is no reference; write <rule>, <variable=rule>, <variable>, <variable.attribute>"
            )
        name, source, attribute = found.groups()
        name, capital = name[:1].lower() + name[1:], name[:1].isupper()
        if source is None and attribute is None and name in rules:
            return Draw(name, None, capital)
        if source is None:
            return Recall(name, attribute, capital)
        if name in rules:
            self._fail(f"{rule}: <{part}>: {name!r} is a rule already; choose another name to remember by")
        if source not in rules:
            self._fail(f"{rule}: <{part}>: no rule {source!r}{did_you_mean(source, rules)}")
        return Draw(source, name, capital)

    def _find_entries(self, rule: str, path: tuple[str, ...]) -> bool:
        """Lists what a rule can write, if it is of plain text and not too much; whether it is."""
        if rule in path:
            self._fail(f"{' > '.join((*path, rule))}: a rule must not contain itself")
        if rule in self.entries:
            return True
        plain = True
        for each in self.rules[rule]:
            for symbol in each.symbols:
                if isinstance(symbol, Draw):
                    plain = self._find_entries(symbol.rule, (*path, rule)) and plain and not symbol.variable
                plain = plain and not isinstance(symbol, Recall)
        if not plain or sum(self._count(each) for each in self.rules[rule]) > MAX_ENTRIES:
            return False
        entries = [entry for each in self.rules[rule] for entry in self._flatten(rule, each)]
        texts = [entry.text for entry in entries]
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            self._fail(f"{rule}: writes {twice!r} in two ways, and the text would not tell which")
        self.entries[rule] = tuple(entries)
        return True

    def _count(self, alternative: Alternative) -> int:
        """How many texts an alternative of plain text can write."""
        return math.prod(len(self.entries[each.rule]) for each in alternative.symbols if isinstance(each, Draw))

    def _flatten(self, rule: str, alternative: Alternative) -> Iterable[Entry]:
        """All that one alternative of plain text can write."""
        for combination in product(*map(self._parts, alternative.symbols)):
            pairs = [pair for entry in combination for pair in entry.attributes.items()]
            if len(dict(pairs)) < len(pairs):
                self._fail(f"{rule}: an attribute is given twice in {alternative.text!r}")
            probability = math.prod((entry.probability for entry in combination), start=alternative.probability)
            yield Entry("".join(entry.text for entry in combination), probability, dict(pairs))

    def _parts(self, symbol: Symbol) -> tuple[Entry, ...]:
        if isinstance(symbol, str):
            return (Entry(symbol, 1.0),)
        if isinstance(symbol, Give):
            return (Entry("", 1.0, {symbol.attribute: symbol.text}),)
        assert isinstance(symbol, Draw)
        group = self.entries[symbol.rule]
        return tuple(Entry(_capital(each.text, symbol.capital), each.probability, each.attributes) for each in group)

    def _check_references(self) -> None:
        """Every reference is to something that is there."""
        symbols = [(rule, symbol) for rule, group in self.rules.items() for each in group for symbol in each.symbols]
        for rule, symbol in symbols:
            if isinstance(symbol, Give) and rule not in self.entries:
                self._fail(f"{rule}: <.{symbol.attribute}:...> belongs into a rule of plain text")
            if isinstance(symbol, Draw) and symbol.rule not in self.entries and (symbol.variable or symbol.capital):
                self._fail(
                    f"{rule}: only a rule of plain text, of at most {MAX_ENTRIES:,} texts, can be remembered or "
                    f"capitalized, not {symbol.rule!r}"
                )
            if isinstance(symbol, Draw) and symbol.variable:
                self.sources.setdefault(symbol.variable, set()).add(symbol.rule)
        for rule, symbol in symbols:
            if isinstance(symbol, Recall):
                if symbol.variable not in self.sources:
                    hint = did_you_mean(symbol.variable, [*self.rules, *self.sources])
                    self._fail(f"{rule}: <{symbol.variable}> is neither a rule nor remembered anywhere{hint}")
                for source in self.sources[symbol.variable] if symbol.attribute else ():
                    lacking = [each.text for each in self.entries[source] if symbol.attribute not in each.attributes]
                    if lacking:
                        self._fail(
                            f"{rule}: <{symbol.variable}.{symbol.attribute}>: {lacking[0]!r} of {source} has none"
                        )

    def _check_memory(self, rule: str, certain: frozenset, possible: frozenset, known: dict) -> tuple:
        """What is remembered after a rule, certainly and possibly, given what is before it. Nothing is asked for too
        early, and nothing remembered twice."""
        if rule in self.entries:
            return certain, possible
        if (rule, certain, possible) not in known:
            ends = []
            for each in self.rules[rule]:
                sure, maybe = certain, possible
                for symbol in each.symbols:
                    if isinstance(symbol, Recall) and symbol.variable not in sure:
                        self._fail(f"{rule}: <{symbol.variable}> may not be remembered yet, in {each.text!r}")
                    if isinstance(symbol, Draw) and symbol.variable:
                        if symbol.variable in maybe:
                            self._fail(f"{rule}: <{symbol.variable}={symbol.rule}>: it is remembered already")
                        at_once = 1 + sum(symbol.rule in self.sources[variable] for variable in maybe)
                        if (there := len(self.entries[symbol.rule])) < at_once:
                            self._fail(
                                f"{symbol.rule}: has {there} alternatives, and up to {at_once} are remembered at once"
                            )
                        sure, maybe = sure | {symbol.variable}, maybe | {symbol.variable}
                    elif isinstance(symbol, Draw):
                        sure, maybe = self._check_memory(symbol.rule, sure, maybe, known)
                ends.append((sure, maybe))
            known[rule, certain, possible] = (
                frozenset.intersection(*(sure for sure, _ in ends)),
                frozenset.union(*(maybe for _, maybe in ends)),
            )
        return known[rule, certain, possible]


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there


class _Loader(_SafeLoader):
    """YAML in which a key that is there twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice, line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_grammar(path: str | Path) -> Grammar:
    """A grammar from its YAML file.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is no YAML, or no grammar.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such grammar")
    try:
        rules = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise DataError(f"{path}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    return Grammar(rules, name=path.name)


def _recall(symbol: Recall, memory: Memory) -> str:
    entry = memory[symbol.variable][1]
    return _capital(entry.attributes[symbol.attribute] if symbol.attribute else entry.text, symbol.capital)


def _capital(text: str, capital: bool) -> str:
    return text[:1].upper() + text[1:] if capital else text


def _unwind(trail: tuple | None) -> Derivation:
    choices = []
    while trail is not None:
        choice, trail = trail
        choices.append(choice)
    return tuple(reversed(choices))
