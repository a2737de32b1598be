"""From text and prompt/response pairs to batches: corpora, the token cache, and the tokens of each step.

`TextDataModule` is imported on first use: it needs Lightning, whose import takes seconds.
"""

from typing import TYPE_CHECKING, Any

from tinylm.data.batches import IGNORE, Batch, TrainingWindows
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.corpora import Corpus, open_corpus
from tinylm.data.pairs import Turn, read_pairs
from tinylm.data.template import CHAT, PAIRS, Template, encode_pairs, encode_turns, find_template, prompt_ids
from tinylm.data.tokens import open_tokens, resolve_tokenizer

if TYPE_CHECKING:
    from tinylm.data.datamodule import TextDataModule

__all__ = [
    "CHAT",
    "IGNORE",
    "PAIRS",
    "Batch",
    "ChatTemplate",
    "Corpus",
    "Template",
    "TextDataModule",
    "TrainingWindows",
    "Turn",
    "encode_pairs",
    "encode_turns",
    "find_template",
    "open_corpus",
    "open_tokens",
    "prompt_ids",
    "read_pairs",
    "resolve_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name == "TextDataModule":
        from tinylm.data.datamodule import TextDataModule

        return TextDataModule
    raise AttributeError(f"module 'tinylm.data' has no attribute {name!r}")
