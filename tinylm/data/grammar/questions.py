"""Prompt/response pairs about short stories: questions and summaries, generated like the stories themselves.

The grammar beside this file generates a story, a question or the request for a summary, and the answer, as one text.
The answer uses variables set while the story was generated, so it is true by construction. The prompt ends with the
last colon of the text; the response follows.

Record i depends only on the grammars, the seed and i, and is the same on every platform.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

from tinylm.data.grammar.parse import Grammar
from tinylm.data.grammar.rules import read_rules
from tinylm.data.grammar.stories import story_grammar, write_text
from tinylm.errors import ConfigError, did_you_mean

KINDS = ("questions", "summaries")


@lru_cache
def pair_grammar(kind: str) -> Grammar:
    """The grammar of `questions` or `summaries`: its own rules, and the plain rules of the stories."""
    if kind not in KINDS:
        raise ConfigError(
            f"no pairs of the kind {kind!r}{did_you_mean(kind, KINDS) or ', known are ' + ', '.join(KINDS)}"
        )
    folder, plain = Path(__file__).parent, story_grammar().entries
    rules = {rule: group for rule, group in read_rules(folder / "stories.grammar.yaml").items() if rule in plain}
    return Grammar(rules | read_rules(folder / "questions.grammar.yaml"), start=kind, name="questions.grammar.yaml")


def write_pair(kind: str, seed: int, number: int) -> tuple[str, str]:
    """Prompt and response of record `number` of a seed; the response begins with a space."""
    text, _ = write_text(pair_grammar(kind), seed, number)
    prompt, colon, response = text.rpartition(":")
    return prompt + colon, response


def write_parts(kind: str, counts: Sequence[int], seed: int = 0) -> list[list[tuple[str, str]]]:
    """Records in parts of these sizes, each about a different story. A part does not depend on those after it."""
    pairs = _pairs_about_new_stories(kind, seed)
    return [list(islice(pairs, size)) for size in counts]


def _pairs_about_new_stories(kind: str, seed: int) -> Iterator[tuple[str, str]]:
    seen = set()
    for number in count():
        prompt, response = write_pair(kind, seed, number)
        story = prompt.partition("\n")[0]
        if story not in seen:
            seen.add(story)
            yield prompt, response
