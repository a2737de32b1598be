"""stories: the built-in corpus of short English children's stories, whose true entropy is known.

The grammar beside this file writes them; every choice in it has a known probability, and each story can have come about
in one way only. So the probability of a story is known exactly, and with it the best loss that any model could reach.
Story i depends only on the grammar, the seed and i, and is the same on every platform.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

from tinylm.data.grammar.grammar import Derivation, Grammar, load_grammar

COUNT = 8000  # 4 MB


@lru_cache(maxsize=1)
def story_grammar() -> Grammar:
    """The grammar of the built-in stories."""
    return load_grammar(Path(__file__).with_name("stories.grammar.yaml"))


def write_text(grammar: Grammar, seed: int, number: int) -> tuple[str, Derivation]:
    """Text `number` of a seed, and the choices that made it."""
    return grammar.generate(Random(f"tinylm-{grammar.fingerprint}-{seed}-{number}"))


def story(seed: int, number: int) -> str:
    """The text of one story, which ends with a newline."""
    return write_text(story_grammar(), seed, number)[0]


def stories(seed: int, count: int) -> Iterator[str]:
    """The first `count` stories of a seed."""
    return (story(seed, number) for number in range(count))


def parse(text: str) -> list[Derivation]:
    """All derivations of a story: exactly one, or none if the grammar cannot have written it."""
    return story_grammar().parse(text)


def log_prob(text: str) -> float:
    """The exact log probability of a story, in nats; -inf if the grammar cannot have written it."""
    return story_grammar().log_prob(text)
