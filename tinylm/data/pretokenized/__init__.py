"""Token ids that others have made (nanoGPT, llm.c, modded-nanogpt, Megatron): one file a format.

`find_pretokenized` tells the format by the content, `shard_tokenizer` finds the tokenizer that the ids were made with,
and `check_ids` makes sure that they are of its vocabulary. `write_pretokenized` writes the same formats.
"""

from tinylm.data.pretokenized.base import Pretokenized, Shard
from tinylm.data.pretokenized.find import find_pretokenized
from tinylm.data.pretokenized.tokenizer import check_ids, check_recorded, shard_tokenizer

__all__ = ["Pretokenized", "Shard", "check_ids", "check_recorded", "find_pretokenized", "shard_tokenizer"]
