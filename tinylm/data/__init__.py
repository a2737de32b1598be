"""Text to batches: corpora, the token cache, and the rule that says which tokens make up step s."""

from tinylm.data.batches import IGNORE, Batch, TrainingWindows
from tinylm.data.corpus import Corpus, open_corpus
from tinylm.data.datamodule import TextDataModule
from tinylm.data.tokens import open_tokens, resolve_tokenizer

__all__ = [
    "IGNORE",
    "Batch",
    "Corpus",
    "TextDataModule",
    "TrainingWindows",
    "open_corpus",
    "open_tokens",
    "resolve_tokenizer",
]
