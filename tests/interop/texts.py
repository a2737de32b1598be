"""Texts for comparisons of tokenizers."""

import random

from tinylm.data.grammar.stories import stories

STORIES = "".join(stories(seed=3, count=60))


def random_texts(count: int) -> list[str]:
    """Words, numbers, punctuation, white space and letters of many scripts in random order."""
    source = random.Random(0)
    parts = [
        *STORIES[:600].split(" "), " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "'ll", "'S", "'RE", "don't",
        "1", "23", "4567", " 89", "...", "!?", "<|", "|>", "<|endoftext|>", "é", "日本語", "Привет", "مرحبا", "नमस्ते",
        "🙂", "👩‍👩‍👧", "½", "²", "Ⅷ", "e\u0301", "ß", "\u00a0", "\u3000", "_", "#", "x=y+1;", "—", "“q”",
    ]  # fmt: skip
    return [
        "".join(source.choice(parts) + source.choice(["", " "]) for _ in range(source.randrange(1, 12)))
        for _ in range(count)
    ]
