"""Shows how byte pair encoding splits a text as the vocabulary grows: `python scripts/examples/bpe.py [my.txt]`."""

import sys
from pathlib import Path

from tinylm.data.grammar.stories import stories
from tinylm.tokenizer import BPETokenizer

text = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else "".join(stories(seed=0, count=1000))
train, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
for vocab_size in (256, 300, 400, 600, 1000):
    tokenizer = BPETokenizer.train_from_texts([train], vocab_size=vocab_size)
    bytes_per_token = len(held_out.encode()) / len(tokenizer.encode(held_out))
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(train[:50])]
    print(f"{vocab_size:5} tokens, {bytes_per_token:.2f} bytes per token: {'|'.join(pieces)}")
