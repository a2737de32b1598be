"""Grammars against an independent enumeration of all derivations."""

import itertools
import math
import re
from collections import Counter, defaultdict
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.data.grammar.generate import log_prob_of
from tinylm.data.grammar.next_tokens import NextTokens
from tinylm.data.grammar.parse import Grammar, load_grammar
from tinylm.errors import DataError, MissingInputError


def chi_square_p(statistic: float, freedom: int) -> float:
    """The probability of a chi-square at least this large."""
    return torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2).double()).item()


# --- an oracle that shares no code with the grammar


def enumerate_texts(rules: dict, start: str) -> list[tuple[str, float]]:
    """(text, probability) of every derivation, by leftmost substitution in the rules as written."""

    def shares(rule):
        found = rules[rule] if isinstance(rules[rule], dict) else dict.fromkeys(rules[rule], 1)
        return {text: weight / sum(found.values()) for text, weight in found.items()}

    def plain(rule):  # -> [(text, attributes, probability)]
        found = []
        for text, share in shares(rule).items():
            attributes = dict(re.findall(r"<\.(\w+):([^<>]*)>", text))
            parts = re.split(r"<(\w+)>", re.sub(r"<\.[^<>]*>", "", text))
            options = [[(part, {}, 1.0)] if i % 2 == 0 else plain(part) for i, part in enumerate(parts)]
            for combination in itertools.product(*options):
                merged = attributes | {k: v for _, more, _ in combination for k, v in more.items()}
                written = "".join(text for text, _, _ in combination)
                found.append((written, merged, share * math.prod(p for _, _, p in combination)))
        return found

    def expand(text, done, variables, probability):
        match = re.search(r"<([^<>]*)>", text)
        if not match:
            yield done + text, probability
            return
        done, rest, reference = done + text[: match.start()], text[match.end() :], match[1]
        capital = (lambda t: t[:1].upper() + t[1:]) if reference[0].isupper() else (lambda t: t)
        name, _, source = (reference[0].lower() + reference[1:]).partition("=")
        variable, _, attribute = name.partition(".")
        if source:
            entries = [
                entry for entry in plain(source) if (source, entry[0]) not in {m[:2] for m in variables.values()}
            ]
            total = sum(p for _, _, p in entries)
            for written, attributes, p in entries:
                then = variables | {name: (source, written, attributes)}
                yield from expand(rest, done + capital(written), then, probability * p / total)
        elif variable in variables:
            _, written, attributes = variables[variable]
            yield from expand(
                rest, done + capital(attributes[attribute] if attribute else written), variables, probability
            )
        else:
            for alternative, p in shares(name).items():
                if reference[0].isupper():  # plain rules only, which set no variables
                    for written, _, q in plain(name):
                        yield from expand(rest, done + capital(written), variables, probability * q)
                    return
                if "<." in alternative:
                    alternative = re.sub(r"<\.[^<>]*>", "", alternative)
                yield from expand(alternative + rest, done, variables, probability * p)

    return list(expand(f"<{start}>", "", {}, 1.0))


BY_HAND = {
    "story": ["<hero=name> met <friend=name>. <Hero> <verb> <friend> and <hero.his> <animal>. <end>"],
    "end": {"<Friend> left.": 3, "<Animal>! <Hero> left <hero.his> <pet=animal>.": 1},
    "name": ["<girl><.his:her>", "<boy><.his:his>"],
    "girl": {"ann": 2, "mia": 1},
    "boy": ["ben", "al"],
    "verb": ["saw", "saw and liked"],
    "animal": ["cat", "dog"],
}


def probabilities(rules: dict, start: str) -> dict[str, float]:
    found = defaultdict(float)
    for text, probability in enumerate_texts(rules, start):
        found[text] += probability
    return dict(found)


def test_probabilities_by_hand():
    grammar = Grammar(BY_HAND)
    # ann: 1/2 * 2/3; ben, given that ann is excluded: (1/2 * 1/2) / (1 - 1/3); saw: 1/2; dog: 1/2; Friend left: 3/4
    expected = 1 / 3 * (1 / 4) / (2 / 3) * 1 / 2 * 1 / 2 * 3 / 4
    text = "ann met ben. Ann saw ben and her dog. Ben left."
    assert math.exp(grammar.log_prob(text)) == pytest.approx(expected, rel=1e-12)
    [derivation] = grammar.parse(text)
    assert [choice.text for choice in derivation if choice.probability < 1] == [
        "ann", "ben", "saw", "dog", "<Friend> left.",
    ]  # fmt: skip
    assert grammar.parse(text.replace("her", "his")) == []  # an attribute must be right
    assert grammar.parse("ann met ann. Ann saw ann and her dog. Ann left.") == []
    assert grammar.log_prob("ann met") == grammar.log_prob(text + " ") == -math.inf


def test_probabilities_of_a_small_grammar_sum_to_one():
    grammar, expected = Grammar(BY_HAND), probabilities(BY_HAND, "story")
    assert len(expected) == 12 * 2 * 2 * (1 + 2 * 2)  # pairs of names, verbs, animals, endings
    assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
    assert math.fsum(math.exp(grammar.log_prob(text)) for text in expected) == pytest.approx(1, abs=1e-12)
    for text, probability in expected.items():
        assert grammar.log_prob(text) == pytest.approx(math.log(probability), abs=1e-12)
        assert len(grammar.parse(text)) == 1


def test_generated_texts_follow_their_probabilities():
    """A chi-square test of whole texts against `log_prob`."""
    grammar, expected, count = Grammar(BY_HAND), probabilities(BY_HAND, "story"), 40_000
    random = Random(1)
    found = Counter(grammar.generate(random)[0] for _ in range(count))
    assert found.keys() <= expected.keys()
    statistic = sum((found[text] - count * p) ** 2 / (count * p) for text, p in expected.items())
    assert chi_square_p(statistic, len(expected) - 1) > 1e-6


# --- random grammars

WORDS = ["a", "b", "ab", "ba", "abc", ""]  # some are prefixes of others, so many texts are ambiguous


@st.composite
def grammars(draw) -> dict:
    """Two levels of templates over two lists; variables are set before they are used."""
    words = lambda: draw(st.lists(st.sampled_from(WORDS), min_size=3, max_size=4, unique=True))
    weigh = lambda texts: {text: draw(st.integers(1, 4)) for text in texts}
    rules = {"one": weigh(words()), "two": [f"{word}<.x:{draw(st.sampled_from('cd'))}>" for word in words()]}
    first = draw(st.permutations(["<v=one>", "<w=one>", "<u=two>", "-"]))
    pieces = st.sampled_from(["<v>", "<w>", "<U.x>", "<u>", "<one>", "<two>", "<One>", "-", " ", " é", "<sub>"])
    rules["sub"] = weigh(draw(st.lists(st.sampled_from(["<v>", "<one>", "e", "<u.x>"]), min_size=1, unique=True)))
    rest = [draw(st.lists(pieces, max_size=4)) for _ in range(draw(st.integers(1, 2)))]
    return {"start": sorted({"".join([*first, *each]) for each in rest})} | rules


def check_next_tokens(grammar: Grammar, texts: set[str], random: Random) -> None:
    """Tokens are any one to four bytes in a row, of several words or of a part of a character."""
    written = sorted(text.encode() for text in texts)
    some = random.sample(written, min(5, len(written)))
    cut = {text[at : at + length] for text in some for at in range(len(text)) for length in (1, 2, 4)}
    tokens = [*sorted(cut), b"<end>", b"b", b"a"]  # the last may stand twice
    end = tokens.index(b"<end>")
    guide = NextTokens(grammar, tokens, [end], end)
    for text in (*some, b"a" + some[0]):
        begin = random.randrange(len(text.decode()) + 1)
        prompt = text.decode()[:begin].encode()
        ids, done = [], len(prompt)
        while done < len(text):
            ids.append(
                random.choice([i for i, each in enumerate(tokens) if text.startswith(each, done) and i != end] or [end])
            )
            done += len(tokens[ids[-1]])
        so_far, expected = prompt, []
        for number in [*ids, end]:
            possible = [i for i, each in enumerate(tokens) if any(t.startswith(so_far + each) for t in written)]
            expected.append(possible + [end] * (so_far in written))
            if number not in expected[-1]:
                break
            so_far += tokens[number]
        found = guide.along(prompt.decode(), [*ids, end])
        assert [sorted(each) for each in found] == [sorted(each) for each in expected]


@settings(max_examples=60, deadline=None)
@given(grammars(), st.integers(0, 100))
def test_log_prob_of_any_grammar_matches_the_enumeration(rules, seed):
    rules = {rule: list(found) if isinstance(found, list) else found for rule, found in rules.items()}
    grammar, derivations = Grammar(rules), enumerate_texts(rules, "start")
    expected, ways = probabilities(rules, "start"), Counter(text for text, _ in derivations)
    assert math.fsum(expected.values()) == pytest.approx(1, abs=1e-9)
    beginnings = {text[:k] for text in expected for k in range(len(text) + 1)}
    for text in Random(seed).sample(sorted(expected), min(20, len(expected))):
        assert grammar.log_prob(text) == pytest.approx(math.log(expected[text]), abs=1e-9)
        assert len(grammar.parse(text)) == ways[text]
        begins = [math.fsum(p for other, p in expected.items() if other[:k] == text[:k]) for k in range(len(text) + 1)]
        assert grammar.prefix_log_probs(text).tolist() == pytest.approx([math.log(p) for p in begins], abs=1e-9)
        for changed in (text, text[:-1], text + "a", text[: seed % 4] + "b" + text[seed % 4 :]):
            right = max(k for k in range(len(changed) + 1) if changed[:k] in beginnings)
            assert grammar.mistake(changed) == (None if changed in expected else right)
    random = Random(seed)
    check_next_tokens(grammar, set(expected), random)
    for _ in range(10):
        text, derivation = grammar.generate(random)
        assert derivation in grammar.parse(text)
        assert log_prob_of(derivation) <= grammar.log_prob(text) + 1e-9
        assert text in expected


def test_a_rule_can_have_too_many_texts_to_enumerate():
    grammar = Grammar({"story": ["<a><a><a><a><a><a>."], "a": [*"abcdefghij"]})
    assert grammar.log_prob("abcdej.") == pytest.approx(-6 * math.log(10))
    assert len(grammar.parse(grammar.generate(Random(0))[0])) == 1


# --- refusals

REFUSED = {
    "no mapping": ([], "a grammar must be a mapping of rules to their alternatives"),
    "name": ({"Story": ["x"]}, "begin with a lowercase letter, got 'Story'"),
    "no list": ({"story": "x"}, "story: must be a list of alternatives, or a mapping"),
    "empty": ({"story": []}, "story: must be a list"),
    "twice": ({"story": ["a", "a"]}, "story: 'a' is listed twice; give weights instead"),
    "yes": ({"story": [True]}, "True is not a text; put it in quotes"),
    "weight": ({"story": {"a": 0}}, "the weight of 'a' must be a positive number, got 0"),
    "weight text": ({"story": {"a": "2"}}, "the weight of 'a' must be a positive number, got '2'"),
    "brackets": ({"story": ["a < b"]}, "story: < and > must enclose a reference, in 'a < b'"),
    "no reference": ({"story": ["<a b>"]}, "<a b> is not a reference; write"),
    "no rule": ({"story": ["<x=animla>"], "animal": ["cat"]}, "no rule 'animla', did you mean 'animal'"),
    "no name": ({"story": ["<animla>"], "animal": ["cat"]}, "<animla> is neither a rule nor a variable, did you"),
    "rule and variable": ({"story": ["<animal=animal>"], "animal": ["cat"]}, "'animal' is already a rule"),
    "itself": ({"story": ["a<next>"], "next": ["<story>"]}, "story > next > story: a rule must not contain itself"),
    "no trace": ({"story": ["<a><b>"], "a": ["x", "xy"], "b": ["yz", "z"]}, "story: generates 'xyz' in two ways"),
    "too early": ({"story": ["<x> <x=a>"], "a": ["b"]}, "<x> may not be set yet, in '<x> <x=a>'"),
    "maybe": ({"story": ["<m> <x>"], "m": ["<x=a>", "no"], "a": ["b"]}, "<x> may not be set yet"),
    "again": ({"story": ["<m> <x=a>"], "m": ["<x=a>", "no"], "a": ["b", "c"]}, "<x=a>: may be set already"),
    "no attribute": ({"story": ["<x=a><x.y>"], "a": ["b<.y:1>", "c"]}, "<x.y>: 'c' of a has no such attribute"),
    "attribute twice": ({"story": ["<x=a>"], "a": ["b<.y:1><.y:2>"]}, "an attribute is set twice"),
    "misplaced": ({"story": ["<x=a><.y:1>"], "a": ["b"]}, "<.y:...> is allowed in plain rules only"),
    "composite": ({"story": ["<z=m>"], "m": ["<x=a>"], "a": ["b"]}, "only a plain rule of at most"),
    "too few": ({"story": ["<x=a><y=a>"], "a": ["b"]}, "a: has 1 alternatives, but up to 2 are held at once"),
    "too many": ({"story": ["<x=b>"], "b": ["<a><a><a><a><a>"], "a": [*"abcdefghij"]}, "of at most 10,000 texts"),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "problem"), REFUSED.values(), ids=REFUSED)
def test_invalid_grammars_are_refused(rules, problem):
    with pytest.raises(DataError, match="^my: .*" + re.escape(problem)):
        Grammar(rules, name="my")


def test_invalid_files_are_refused_by_name(tmp_path):
    path = tmp_path / "my.grammar.yaml"
    path.write_text("story: [a <b>]\nb: {c: 1, d: 3}\n")
    assert math.exp(load_grammar(path).log_prob("a d")) == pytest.approx(3 / 4)
    path.write_text("story: [a]\nb: [c]\nstory: [d]\n")
    with pytest.raises(DataError, match=r"my\.grammar\.yaml: story is given twice, in lines 1 and 3"):
        load_grammar(path)
    path.write_text("story: [a\n")
    with pytest.raises(DataError, match=r"my\.grammar\.yaml: is not valid YAML"):
        load_grammar(path)
    path.write_text("? [a, b]\n: [c]\n")
    with pytest.raises(DataError, match=r"my\.grammar\.yaml: "):
        load_grammar(path)
    path.write_bytes(b"story: [\xff]\n")
    with pytest.raises(DataError, match=r"my\.grammar\.yaml: is not UTF-8 at byte 8; save it as UTF-8"):
        load_grammar(path)
    with pytest.raises(MissingInputError, match=r"nowhere\.grammar\.yaml: no such grammar"):
        load_grammar(tmp_path / "nowhere.grammar.yaml")
