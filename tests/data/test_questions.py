"""Questions and summaries: the answers follow from the story by an independent reading, and records fit `small`."""

import re

import pytest

from tinylm.data import PAIRS, Turn, encode_turns
from tinylm.data.grammar.questions import KINDS, write_pair, write_parts
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError
from tinylm.model.config import PRESETS
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer

COUNT = 2000


@pytest.fixture(scope="module")
def records() -> dict[str, list[tuple[str, str]]]:
    return {kind: write_parts(kind, [COUNT], seed=5)[0] for kind in KINDS}


def facts(story: str) -> dict[str, dict[str, str]]:
    """The facts of a story, by regular expressions: who had what and liked whom, where the thing was, on which day."""
    hero = re.match(r"Once upon a time there was (\w+)\.", story)
    pal = re.search(r"(\w+) liked (\w+)\.", story)
    when = re.search(r"\bOn (\w+day)\b", story)
    where = re.search(r"((?:under|behind|beside|near) the \w+)[.,]", story)
    assert hero and pal and when and where and pal[1] == hero[1]
    had = dict(re.findall(r"(\w+) had a (\w+)\.", story))
    assert had.keys() == {hero[1], pal[2]}
    return dict(had=had, where={had[hero[1]]: where[1]}, people=dict(hero=hero[1], pal=pal[2], when=when[1]))


def answer(question: str, story: str) -> str:
    """The answer to a question of any of the four kinds."""
    known = facts(story)
    owner = {thing: who for who, thing in known["had"].items()}
    people = known["people"]
    if question == "On which day was that?":
        return people["when"]
    for pattern, found in (
        (r"Who had a (\w+)\?", owner),
        (r"Who liked (\w+)\?", {people["pal"]: people["hero"]}),
        (r"Who did (\w+) like\?", {people["hero"]: people["pal"]}),
        (r"Where was the (\w+)\?", known["where"]),
    ):
        if asked := re.fullmatch(pattern, question):
            return found[asked[1]]
    raise AssertionError(question)


def test_answers_follow_from_the_story(records):
    kinds = set()
    for prompt, response in records["questions"]:
        story, question, end = prompt.split("\n")
        assert end == "Answer:" and question.startswith("Question: ")
        question = question.removeprefix("Question: ")
        assert response == f" {answer(question, story)}"
        kinds.add(" ".join(question.split()[:2]))
    assert kinds == {"Who had", "Who liked", "Who did", "Where was", "On which"}


def test_answers_cannot_be_guessed_without_the_story(records):
    """The most frequent answer to each question is right less than one time in ten."""
    by_words: dict[str, list[str]] = {}
    for prompt, response in records["questions"]:
        by_words.setdefault(" ".join(prompt.split("\n")[1].split()[:3]), []).append(response)
    likeliest = sum(max(map(answers.count, set(answers))) for answers in by_words.values())
    assert likeliest / COUNT < 0.1


def test_summaries_contain_the_facts_of_the_story(records):
    for prompt, response in records["summaries"]:
        story, end = prompt.split("\n")
        known, people = facts(story), facts(story)["people"]
        thing, pet = known["had"][people["hero"]], known["had"][people["pal"]]
        assert end == "Summary:" and response.startswith(f" {people['hero']}") and response.count(".") == 1
        for word in (people["pal"], f"the {pet}", f"the {thing}", known["where"][thing]):
            assert word in response, response


def test_no_story_occurs_twice_in_any_part():
    parts = write_parts("questions", [1500, 300, 200])
    seen = [prompt.split("\n")[0] for part in parts for prompt, _ in part]
    assert [len(part) for part in parts] == [1500, 300, 200]
    assert len(set(seen)) == 2000
    other = [prompt.split("\n")[0] for prompt, _ in write_parts("questions", [2000], seed=1)[0]]
    assert not set(seen) & set(other)


def test_records_depend_on_kind_seed_and_number_only():
    assert write_pair("questions", 3, 7) == write_pair("questions", 3, 7)
    assert len({write_pair("questions", seed, number) for seed in range(3) for number in range(50)}) == 150
    assert write_parts("questions", [10, 5])[0] == write_parts("questions", [10, 99])[0]


def test_records_fit_the_context_of_small(records):
    tokenizer = BPETokenizer.train_from_texts(stories(0, 2000), vocab_size=2048, special_tokens=[END_OF_TEXT])
    for kind in KINDS:
        turns = [(Turn("user", prompt), Turn("assistant", response)) for prompt, response in records[kind]]
        longest = max(encode_turns(tokenizer, each, PAIRS).num_inputs for each in turns)
        assert (
            longest <= 0.9 * PRESETS["small"]["max_seq_len"]
        )  # among 2,000 records; others are less than a tenth longer


def test_other_kinds_are_refused():
    with pytest.raises(ConfigError, match=r"no pairs of the kind 'question', did you mean 'questions'\?"):
        write_pair("question", 0, 0)
