"""GrammarCorpus: texts that a probabilistic grammar generates, whose exact probabilities are known."""

from collections.abc import Iterator

from tinylm.data.corpora.base import PARTS, HashSplitCorpus
from tinylm.data.grammar.parse import Grammar
from tinylm.data.grammar.stories import write_text
from tinylm.files import sha256_json


class GrammarCorpus(HashSplitCorpus):
    """The first `count` texts of a grammar and a seed."""

    has_floor = True
    unit = "texts"

    def __init__(self, name: str, grammar: Grammar, split: tuple[float, ...], seed: int, count: int) -> None:
        self.name, self.grammar, self.parts = name, grammar, PARTS[: len(split)]
        self.split, self.seed, self.count = split, seed, count
        self.fingerprint = sha256_json(["grammar", grammar.fingerprint, seed, count, split])

    def all_documents(self) -> Iterator[str]:
        """The generated texts."""
        for number in range(self.count):
            yield write_text(self.grammar, self.seed, number)[0]
            self.report(1)

    def size(self, part: str | None = None) -> int | None:
        """The number of texts, all of which are generated for any part."""
        return self.count

    def log_prob(self, document: str) -> float:
        """The exact log probability of a text under the grammar, in nats."""
        return self.grammar.log_prob(document)
