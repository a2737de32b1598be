"""From text and prompt/response pairs to batches: corpora, the token cache, and the tokens of each step.

Everything is imported on first use: batches need PyTorch and `TextDataModule` Lightning, whose imports take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.data.batches import Batch, TrainingWindows
    from tinylm.data.chat_template import ChatTemplate
    from tinylm.data.corpora import Corpus, open_corpus
    from tinylm.data.datamodule import TextDataModule
    from tinylm.data.evaluation_rows import IGNORE
    from tinylm.data.pairs import Turn, read_pairs
    from tinylm.data.run_data import RunData
    from tinylm.data.shard_folder import open_shards, write_shards
    from tinylm.data.template import CHAT, PAIRS, Template, encode_pairs, encode_turns, find_template, prompt_ids
    from tinylm.data.tokens import open_tokens, resolve_tokenizer

__all__ = [
    "CHAT",
    "IGNORE",
    "PAIRS",
    "Batch",
    "ChatTemplate",
    "Corpus",
    "RunData",
    "Template",
    "TextDataModule",
    "TrainingWindows",
    "Turn",
    "encode_pairs",
    "encode_turns",
    "find_template",
    "open_corpus",
    "open_shards",
    "open_tokens",
    "prompt_ids",
    "read_pairs",
    "resolve_tokenizer",
    "write_shards",
]
_MODULES = {
    "batches": ("Batch", "TrainingWindows"),
    "chat_template": ("ChatTemplate",),
    "corpora": ("Corpus", "open_corpus"),
    "datamodule": ("TextDataModule",),
    "evaluation_rows": ("IGNORE",),
    "pairs": ("Turn", "read_pairs"),
    "run_data": ("RunData",),
    "shard_folder": ("open_shards", "write_shards"),
    "template": ("CHAT", "PAIRS", "Template", "encode_pairs", "encode_turns", "find_template", "prompt_ids"),
    "tokens": ("open_tokens", "resolve_tokenizer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"tinylm.data.{module}"), name)
    raise AttributeError(f"module 'tinylm.data' has no attribute {name!r}")
