"""The language of grammars: rules are read from YAML, compiled and checked.

A grammar is a set of rules. A rule lists its alternatives, equally likely or with weights. An alternative is text with
references in angle brackets:

    <place>        an alternative of the rule `place`, drawn anew
    <hero=name>    draws from the rule `name` and stores the text in the variable `hero`; texts of `name` that other
                   variables hold are not drawn
    <hero>         the text in the variable `hero`
    <hero.his>     an attribute of that text
    <.his:her>     sets the attribute `his` of the alternative it is written in; generates no text
    <Hero>         an initial capital generates text that begins with a capital

A plain rule consists of text and other plain rules only. Its texts are enumerated as entries, and only entries can be
stored in variables. The checks guarantee that every reference exists, that a variable is set exactly once before it is
used, and that no rule contains itself. So a grammar has finitely many texts, and each is finite.

Left out: probabilities that depend on earlier choices in other ways.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tinylm.errors import DataError, MissingInputError, did_you_mean
from tinylm.files import sha256_json
from tinylm.safe_yaml import read_yaml

MAX_ENTRIES = 10_000  # texts of one plain rule


# --- the symbols of an alternative: literal text, a `str`, and references


class Draw(NamedTuple):
    """`<rule>` or `<variable=rule>`."""

    rule: str
    variable: str | None = None
    capital: bool = False


class Recall(NamedTuple):
    """`<variable>` or `<variable.attribute>`."""

    variable: str
    attribute: str | None
    capital: bool


class Attribute(NamedTuple):
    """`<.name:text>`."""

    name: str
    text: str


Symbol = str | Draw | Recall | Attribute


class Alternative(NamedTuple):
    """One alternative of a rule, as written and as compiled."""

    text: str
    symbols: tuple[Symbol, ...]
    probability: float


@dataclass(frozen=True)
class Entry:
    """One text of a plain rule, with all references expanded."""

    text: str
    probability: float
    attributes: dict[str, str] = field(default_factory=dict)


class Rules:
    """The compiled rules of a grammar.

    Attributes:
        rules: rule -> its alternatives
        entries: plain rule -> all of its texts
        sources: variable -> the rules it is drawn from
        fingerprint: SHA-256 of everything that determines texts and probabilities
    """

    def __init__(self, rules: Mapping[str, Any], *, start: str | None = None, name: str = "grammar") -> None:
        """Compiles and checks rules.

        Args:
            rules: rule -> a list of alternatives, or a mapping of alternatives to weights
            start: the rule that generates a whole text. Default: the first
            name: the grammar's name in errors

        Raises:
            DataError: if a rule is malformed, refers to something that does not exist, or contains itself.
        """
        self.name = name
        if not isinstance(rules, Mapping) or not rules:
            self._fail("a grammar must be a mapping of rules to their alternatives")
        weights = {rule: self._weights(rule, alternatives) for rule, alternatives in rules.items()}
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
        self._check_variables(self.start, frozenset(), frozenset(), {})

    def _fail(self, problem: str) -> NoReturn:
        raise DataError(f"{self.name}: {problem}")

    # --- compilation

    def _weights(self, rule: Any, alternatives: Any) -> dict[str, float]:
        if not isinstance(rule, str) or not re.fullmatch(r"[a-z_]\w*", rule):
            self._fail(f"a rule's name must be letters, digits and _ and begin with a lowercase letter, got {rule!r}")
        if not isinstance(alternatives, list | Mapping) or not alternatives:
            self._fail(f"{rule}: must be a list of alternatives, or a mapping of alternatives to weights")
        for text in alternatives:
            if not isinstance(text, str):
                self._fail(f"{rule}: {text!r} is not a text; put it in quotes")
        if isinstance(alternatives, list):
            repeated = [text for text in alternatives if alternatives.count(text) > 1]
            if repeated:
                self._fail(f"{rule}: {repeated[0]!r} is listed twice; give weights instead")
            return dict.fromkeys(alternatives, 1)
        for text, weight in alternatives.items():
            if type(weight) not in (int, float) or not 0 < weight < math.inf:
                self._fail(f"{rule}: the weight of {text!r} must be a positive number, got {weight!r}")
        return dict(alternatives)

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
        if attribute := re.fullmatch(r"\.(\w+):(.*)", part, re.DOTALL):
            return Attribute(*attribute.groups())
        found = re.fullmatch(r"(\w+)(?:=(\w+)|\.(\w+))?", part)
        if not found:
            self._fail(
                f"{rule}: <{part}> is not a reference; write <rule>, <variable=rule>, <variable>, <variable.attribute>"
            )
        name, source, attribute = found.groups()
        name, capital = name[:1].lower() + name[1:], name[:1].isupper()
        if source is None and attribute is None and name in rules:
            return Draw(name, None, capital)
        if source is None:
            return Recall(name, attribute, capital)
        if name in rules:
            self._fail(f"{rule}: <{part}>: {name!r} is already a rule; choose another name for the variable")
        if source not in rules:
            self._fail(f"{rule}: <{part}>: no rule {source!r}{did_you_mean(source, rules)}")
        return Draw(source, name, capital)

    def _find_entries(self, rule: str, path: tuple[str, ...]) -> bool:
        """Enumerates the entries of a rule if it is plain and not too large; returns whether it is."""
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
        entries = [entry for each in self.rules[rule] for entry in self._expand(rule, each)]
        texts = [entry.text for entry in entries]
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            self._fail(f"{rule}: generates {twice!r} in two ways, which the text cannot tell apart")
        self.entries[rule] = tuple(entries)
        return True

    def _count(self, alternative: Alternative) -> int:
        return math.prod(len(self.entries[each.rule]) for each in alternative.symbols if isinstance(each, Draw))

    def _expand(self, rule: str, alternative: Alternative) -> Iterable[Entry]:
        """All texts of one alternative of a plain rule."""
        for combination in product(*map(self._parts, alternative.symbols)):
            pairs = [pair for entry in combination for pair in entry.attributes.items()]
            if len(dict(pairs)) < len(pairs):
                self._fail(f"{rule}: an attribute is set twice in {alternative.text!r}")
            probability = math.prod((entry.probability for entry in combination), start=alternative.probability)
            yield Entry("".join(entry.text for entry in combination), probability, dict(pairs))

    def _parts(self, symbol: Symbol) -> tuple[Entry, ...]:
        if isinstance(symbol, str):
            return (Entry(symbol, 1.0),)
        if isinstance(symbol, Attribute):
            return (Entry("", 1.0, {symbol.name: symbol.text}),)
        assert isinstance(symbol, Draw)
        group = self.entries[symbol.rule]
        return tuple(Entry(capitalize(each.text, symbol.capital), each.probability, each.attributes) for each in group)

    # --- checks

    def _check_references(self) -> None:
        """Checks that every reference exists, and finds the sources of the variables."""
        symbols = [(rule, symbol) for rule, group in self.rules.items() for each in group for symbol in each.symbols]
        for rule, symbol in symbols:
            if isinstance(symbol, Attribute) and rule not in self.entries:
                self._fail(f"{rule}: <.{symbol.name}:...> is allowed in plain rules only")
            if isinstance(symbol, Draw) and symbol.rule not in self.entries and (symbol.variable or symbol.capital):
                self._fail(
                    f"{rule}: only a plain rule of at most {MAX_ENTRIES:,} texts can be stored in a variable or "
                    f"capitalized, not {symbol.rule!r}"
                )
            if isinstance(symbol, Draw) and symbol.variable:
                self.sources.setdefault(symbol.variable, set()).add(symbol.rule)
        for rule, symbol in symbols:
            if isinstance(symbol, Recall):
                self._check_recall(rule, symbol.variable, symbol.attribute)

    def _check_recall(self, rule: str, variable: str, attribute: str | None) -> None:
        if variable not in self.sources:
            hint = did_you_mean(variable, [*self.rules, *self.sources])
            self._fail(f"{rule}: <{variable}> is neither a rule nor a variable{hint}")
        for source in self.sources[variable] if attribute else ():
            lacking = [entry.text for entry in self.entries[source] if attribute not in entry.attributes]
            if lacking:
                self._fail(f"{rule}: <{variable}.{attribute}>: {lacking[0]!r} of {source} has no such attribute")

    def _check_variables(self, rule: str, surely: frozenset, possibly: frozenset, known: dict) -> tuple:
        """Checks that variables are set once and before their use; returns those surely and possibly set after a rule.

        `surely` are the variables set on every path to the rule, `possibly` those set on some. `known` caches results.
        """
        if rule in self.entries:
            return surely, possibly
        key = (rule, surely, possibly)
        if key not in known:
            ends = [self._check_alternative(rule, each, surely, possibly, known) for each in self.rules[rule]]
            surely_sets, possibly_sets = zip(*ends, strict=True)
            known[key] = frozenset.intersection(*surely_sets), frozenset.union(*possibly_sets)
        return known[key]

    def _check_alternative(self, rule: str, each: Alternative, surely: frozenset, possibly: frozenset, known) -> tuple:
        for symbol in each.symbols:
            if isinstance(symbol, Recall) and symbol.variable not in surely:
                self._fail(f"{rule}: <{symbol.variable}> may not be set yet, in {each.text!r}")
            if isinstance(symbol, Draw) and symbol.variable:
                self._check_draw(rule, symbol.rule, symbol.variable, possibly)
                surely, possibly = surely | {symbol.variable}, possibly | {symbol.variable}
            elif isinstance(symbol, Draw):
                surely, possibly = self._check_variables(symbol.rule, surely, possibly, known)
        return surely, possibly

    def _check_draw(self, rule: str, source: str, variable: str, possibly: frozenset) -> None:
        if variable in possibly:
            self._fail(f"{rule}: <{variable}={source}>: may be set already")
        needed = 1 + sum(source in self.sources[other] for other in possibly)
        if (available := len(self.entries[source])) < needed:
            self._fail(f"{source}: has {available} alternatives, but up to {needed} are held at once")


def capitalize(text: str, capital: bool) -> str:
    """The text, with its first letter in upper case if `capital`."""
    return text[:1].upper() + text[1:] if capital else text


# --- files


def read_rules(path: str | Path) -> Any:
    """The content of a grammar's YAML file, not yet checked.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is not YAML, or has a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such grammar")
    return read_yaml(path)
