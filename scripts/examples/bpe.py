"""How byte pair encoding cuts a text as its vocabulary grows: `python scripts/examples/bpe.py [my.txt]`."""

import sys
from pathlib import Path

from tinylm.data.grammar.stories import stories
from tinylm.tokenizer import BPETokenizer

text = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else "".join(stories(seed=0, count=1000))
learned, rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
for vocab_size in (256, 300, 400, 600, 1000):
    tokenizer = BPETokenizer.train_from_texts([learned], vocab_size=vocab_size)
    bytes_each = len(rest.encode()) / len(tokenizer.encode(rest))
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(learned[:50])]
    print(f"{vocab_size:5} tokens, {bytes_each:.2f} bytes each: {'|'.join(pieces)}")
