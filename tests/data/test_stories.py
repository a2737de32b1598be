"""The built-in stories: unambiguous, exact in probability, equal on every machine, and split without overlap."""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

import tinylm.data.grammar.stories
from tests.data.test_grammar import chi_square_p, probabilities
from tinylm.data.corpora import open_corpus
from tinylm.data.corpora.generated import GrammarCorpus
from tinylm.data.grammar.generate import log_prob_of
from tinylm.data.grammar.parse import Grammar
from tinylm.data.grammar.stories import log_prob, stories, story, story_grammar, write_text
from tinylm.model.config import PRESETS
from tinylm.tokenizer import BPETokenizer

COUNT = 10_000
GRAMMAR = Path(tinylm.data.grammar.stories.__file__).with_name("stories.grammar.yaml")
RULES = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written() -> list:
    """(text, derivation) of the first stories."""
    return [write_text(story_grammar(), 7, number) for number in range(COUNT)]


# --- probabilities


@pytest.mark.slow
def test_ten_thousand_stories_have_exactly_one_derivation_each(written):
    for text, derivation in written:
        assert story_grammar().parse(text) == [derivation]


def test_log_prob_is_the_sum_of_the_log_probabilities_of_the_choices(written):
    for text, derivation in written[:500]:
        assert log_prob(text) == pytest.approx(sum(math.log(choice.probability) for choice in derivation), abs=1e-9)


def test_frequencies_of_choices_follow_their_probabilities(written):
    """A chi-square test of each rule, over the choices that do not depend on earlier ones."""
    grammar = story_grammar()
    shares = {rule: {each.text: each.probability for each in group} for rule, group in grammar.rules.items()}
    shares |= {rule: {entry.text: entry.probability for entry in group} for rule, group in grammar.entries.items()}
    found = defaultdict(Counter)
    for _, derivation in written:
        for choice in derivation:
            if choice.probability == shares[choice.rule][choice.text]:  # not renormalized
                found[choice.rule][choice.text] += 1
    tested = [rule for rule in found if len(shares[rule]) > 1]
    assert len(tested) > 30
    for rule in tested:
        total = found[rule].total()
        statistic = sum((found[rule][text] - total * p) ** 2 / (total * p) for text, p in shares[rule].items())
        assert chi_square_p(statistic, len(shares[rule]) - 1) > 1e-6, rule


@pytest.mark.parametrize(
    ("plot", "kept"),
    [
        ("errand", {"errand_end": 3, "said": 2}),
        ("boxes", {"color": 3, "boxes_end": 2}),
        ("race", {"race_end": 2, "said": 2}),
    ],
)
def test_probabilities_of_a_small_part_of_the_grammar_sum_to_one(plot, kept):
    """The grammar's own rules with most lists shortened, enumerated by the oracle of test_grammar."""
    needed = {"food": 3, "toy": 3, "trait": 2, "animal": 2, "color": 2, "child": 2, "girl": 2}
    rules = {rule: _first(group, kept.get(rule, needed.get(rule, 1))) for rule, group in RULES.items()}
    opening = "<hero=child> liked <pal=child>. <Pal> had a <pet=animal>, and <hero> had a <look> <thing=toy>."
    rules |= {"plot": [f"<{plot}>"], "opening": [opening], "closing": ["<Pal> was <glad>."]}
    grammar, expected = Grammar(rules), probabilities(rules, "story")
    assert len(expected) > 200
    assert math.fsum(expected.values()) == pytest.approx(1, abs=1e-9)
    assert math.fsum(math.exp(grammar.log_prob(text)) for text in expected) == pytest.approx(1, abs=1e-9)


def _first(group: list | dict, count: int) -> list | dict:
    return {text: group[text] for text in list(group)[:count]} if isinstance(group, dict) else group[:count]


def test_stories_have_long_range_dependencies(written):
    """With its last mention of the hero replaced by another name, a story has no derivation."""
    names = sorted({name for rule in ("girl", "boy") for name in RULES[rule]})
    for text, _ in written[:200]:
        hero = next(word for word in re.findall(r"\w+", text) if word in names)
        last = text.rindex(hero)
        other = next(name for name in names if name not in text)
        assert story_grammar().parse(text[:last] + other + text[last + len(hero) :]) == []


# --- properties of the stories


def test_stories_have_the_documented_properties(written):
    texts = [text for text, _ in written]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 60 and max(lengths) <= 150
    assert len({word.lower() for text in texts for word in re.findall(r"[A-Za-z-]+", text)}) >= 400
    assert len({derivation[1].text for _, derivation in written}) == len(RULES["plot"]) >= 12
    nats = -sum(log_prob_of(derivation) for _, derivation in written)
    assert 0 < nats / sum(map(len, texts)) <= 0.6
    assert all(text.isascii() and text.index("\n") == len(text) - 1 for text in texts)
    tokenizer = BPETokenizer.train_from_texts(texts[:2000], vocab_size=2048)
    assert (
        max(len(tokenizer.encode(text)) for text in texts) + 1 <= PRESETS["small"]["max_seq_len"]
    )  # with the separator


# --- reproducibility


def test_stories_are_equal_in_every_process(python):
    code = """
    import hashlib
    from tinylm.data.grammar.stories import stories
    print(hashlib.sha256("".join(stories(5, 100)).encode()).hexdigest())
    """
    processes = [python(code, env=os.environ | {"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    here = hashlib.sha256("".join(stories(5, 100)).encode()).hexdigest()
    for process in processes:
        out, err = process.communicate()
        assert out.strip() == here, err


def test_a_story_depends_only_on_seed_and_number():
    assert list(stories(3, 5)) == [story(3, number) for number in range(5)] == list(stories(3, 9))[:5]
    assert len({story(seed, number) for seed in range(3) for number in range(100)}) == 300


# --- parts


def corpus(split=(0.9, 0.1), seed=0, count=2000) -> GrammarCorpus:
    return GrammarCorpus("stories", story_grammar(), split, seed, count)


@pytest.mark.parametrize("split", [(0.9, 0.1), (0.7, 0.2, 0.1)])
def test_parts_share_no_story_and_together_have_all(split):
    found = corpus(split)
    parts = [["".join(document) for document in found.documents(part)] for part in found.parts]
    assert sorted(text for part in parts for text in part) == sorted(stories(0, 2000))
    assert sum(len(set(part)) for part in parts) == len({text for part in parts for text in part})
    for part, fraction in zip(parts, split, strict=True):  # five standard deviations of a binomial
        assert abs(len(part) - 2000 * fraction) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5


def test_equal_texts_go_to_the_same_part(tmp_path):
    """In a grammar of few texts, each is in one part only."""
    grammar = Grammar({"story": ["<a><a>"], "a": [*"abcdef"]})
    found = GrammarCorpus("few", grammar, (0.5, 0.5), seed=0, count=500)
    parts = [{text for document in found.documents(part) for text in document} for part in found.parts]
    assert parts[0] and parts[1] and not parts[0] & parts[1]


def test_fingerprints_differ_where_the_parts_do():
    different = [corpus(split, seed, 10) for split in ((0.9, 0.1), (0.8, 0.2)) for seed in (0, 1)]
    different += [
        GrammarCorpus("stories", Grammar({"a": {"b": 1, "c": weight}}), (0.9, 0.1), 0, 10) for weight in (1, 2)
    ]
    assert len({each.fingerprint for each in different}) == 6


def test_a_corpus_name_can_set_the_number_of_texts(tmp_path):
    (tmp_path / "my.grammar.yaml").write_text("story: [a <b>]\nb: [c, d]\n")
    options = dict(split=(0.5, 0.5), cache_dir=tmp_path)
    assert open_corpus("stories", **options).count == 8000
    assert open_corpus("stories:12", **options).count == 12
    found = open_corpus(f"{tmp_path / 'my.grammar.yaml'}:7", **options)
    assert found.count == 7 and found.log_prob("a c") == pytest.approx(math.log(1 / 2))
    assert sum(1 for _ in found.items()) == 7
