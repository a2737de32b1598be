"""Token ids made by other programs (nanoGPT, llm.c, modded-nanogpt, Megatron): one file per format.

`find_pretokenized` recognizes the format by the content, `shard_tokenizer` finds the tokenizer that made the ids, and
`check_ids` checks them against its vocabulary. `write_pretokenized` writes the same formats.
"""

from tinylm.data.pretokenized.base import Pretokenized, Shard
from tinylm.data.pretokenized.find import find_pretokenized
from tinylm.data.pretokenized.tokenizer import check_ids, check_recorded, shard_tokenizer

__all__ = ["Pretokenized", "Shard", "check_ids", "check_recorded", "find_pretokenized", "shard_tokenizer"]
