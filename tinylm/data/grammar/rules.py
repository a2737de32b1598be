"""Rules: a grammar as it is written, compiled and checked. What a reference means: the head of grammar.py.

A rule of plain text (lists, and lists of lists) is written out as its entries; what is drawn from it can be remembered.
Checked are: that every reference is to something that is there, that nothing is asked for before it is certainly
remembered or remembered twice, and that no rule contains itself.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from tinylm.errors import DataError, MissingInputError, did_you_mean
from tinylm.files import sha256_json

MAX_ENTRIES = 10_000  # texts of a rule that is listed, and can be remembered


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


class Rules:
    """The rules of a grammar.

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
        return tuple(Entry(capitalized(each.text, symbol.capital), each.probability, each.attributes) for each in group)

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
            ends = [self._check_alternative(rule, each, certain, possible, known) for each in self.rules[rule]]
            known[rule, certain, possible] = (
                frozenset.intersection(*(sure for sure, _ in ends)),
                frozenset.union(*(maybe for _, maybe in ends)),
            )
        return known[rule, certain, possible]

    def _check_alternative(
        self, rule: str, alternative: Alternative, sure: frozenset, maybe: frozenset, known
    ) -> tuple:
        """What is remembered after one alternative."""
        for symbol in alternative.symbols:
            if isinstance(symbol, Recall) and symbol.variable not in sure:
                self._fail(f"{rule}: <{symbol.variable}> may not be remembered yet, in {alternative.text!r}")
            if isinstance(symbol, Draw) and symbol.variable:
                self._check_drawing(rule, symbol.rule, symbol.variable, maybe)
                sure, maybe = sure | {symbol.variable}, maybe | {symbol.variable}
            elif isinstance(symbol, Draw):
                sure, maybe = self._check_memory(symbol.rule, sure, maybe, known)
        return sure, maybe

    def _check_drawing(self, rule: str, source: str, variable: str, maybe: frozenset) -> None:
        """A variable is drawn once, and there is always something left to draw."""
        if variable in maybe:
            self._fail(f"{rule}: <{variable}={source}>: it is remembered already")
        at_once = 1 + sum(source in self.sources[other] for other in maybe)
        if (there := len(self.entries[source])) < at_once:
            self._fail(f"{source}: has {there} alternatives, and up to {at_once} are remembered at once")


def capitalized(text: str, capital: bool) -> str:
    """The text, with a capital first letter if that is wanted."""
    return text[:1].upper() + text[1:] if capital else text


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there


class _Loader(_SafeLoader):
    """YAML in which a key that is there twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key.value, str)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice, line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_rules(path: str | Path) -> Any:
    """What a grammar's YAML file says, not yet checked.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is no YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such grammar")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise DataError(f"{path}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
