"""questions and summaries: prompts and responses about short stories, made like the stories themselves.

The grammar beside this file tells a story, asks about it (or sums it up) and answers, all in one text. What the answer
says was remembered while the story was written, so it is true, and no reading of the text was needed to find it. The
prompt ends with the text's last colon; the response is what follows.

Record i depends only on the grammars, the seed and i, and is the same on every platform.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from tinylm.data.grammar.grammar import Grammar
from tinylm.data.grammar.rules import read_rules
from tinylm.data.grammar.stories import story_grammar, write_text
from tinylm.errors import ConfigError, did_you_mean

KINDS = ("questions", "summaries")


@lru_cache
def pair_grammar(kind: str) -> Grammar:
    """The grammar of a kind of records: the lists of the stories, and rules of its own.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"no pairs of the kind {kind!r}{did_you_mean(kind, KINDS) or ', known are ' + ', '.join(KINDS)}"
        )
    folder = Path(__file__).parent
    lists = {
        rule: alternatives
        for rule, alternatives in read_rules(folder / "stories.grammar.yaml").items()
        if rule in story_grammar().entries
    }
    rules = lists | read_rules(folder / "questions.grammar.yaml")
    return Grammar(rules, start=kind, name="questions.grammar.yaml")


def write_pair(kind: str, seed: int, number: int) -> tuple[str, str]:
    """Prompt and response of record `number` of a seed; the response begins with a space."""
    text, _ = write_text(pair_grammar(kind), seed, number)
    prompt, colon, response = text.rpartition(":")
    return prompt + colon, response


def write_parts(kind: str, counts: Sequence[int], seed: int = 0) -> list[list[tuple[str, str]]]:
    """Records in parts, none about a story that another one is about.

    Args:
        kind: `questions` or `summaries`
        counts: how many records in each part; the first do not depend on those that follow
        seed: another one gives other records
    """
    fresh = _about_new_stories(kind, seed)
    return [[next(fresh) for _ in range(count)] for count in counts]


def _about_new_stories(kind: str, seed: int) -> Iterator[tuple[str, str]]:
    told, number = set(), 0
    while True:
        prompt, response = write_pair(kind, seed, number)
        number += 1
        story = prompt.partition("\n")[0]
        if story not in told:
            told.add(story)
            yield prompt, response
