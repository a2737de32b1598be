"""Converts unigram models with SentencePiece's normalization to a tokenizer.json.

    charsmap > spaces at both ends, runs of spaces > " " as ▁ > ▁ before the text        a normalizer for each

The two programs give different ids for a few texts. `tokenizers` replaces whole graphemes, SentencePiece the longest
strings of its table. A user-defined symbol is a piece with a high score in `tokenizers`; SentencePiece finds it before
all pieces. `tokenizers` compares float64 sums, sentencepiece float32. A notice says how many sample texts, made from
the model's pieces and the characters of its table, get other ids.
"""

from random import Random
from typing import Any

from tinylm.errors import ConfigError, notice
from tinylm.tokenizer.normalizers.charsmap import read_base64
from tinylm.tokenizer.normalizers.sentencepiece import SPACE, SentencePieceNormalizer
from tinylm.tokenizer.normalizers.sequence import BOTH_ENDS
from tinylm.tokenizer.unigram import UnigramTokenizer

TEXTS, MOST_PIECES = 500, 20  # texts of each kind; pieces of a text


def converted(tokenizer: UnigramTokenizer) -> UnigramTokenizer:
    """The tokenizer as `tokenizers` reads the file. A notice says how many sample texts get other ids.

    Args:
        tokenizer: has a `SentencePieceNormalizer`

    Raises:
        ConfigError: if a space is put after a text instead of before it.
    """
    assert isinstance(tokenizer.normalizer, SentencePieceNormalizer)
    options = tokenizer.options() | {"sums": "parts", "surface": None}
    options["normalizer"] = {"kind": "rewriting", "steps": _steps(tokenizer.normalizer)}
    other = UnigramTokenizer(**options)
    joined, changed = sample_texts(tokenizer)
    counts = [sum(tokenizer.encode(text) != other.encode(text) for text in each) for each in (joined, changed)]
    notice(
        f"tokenizer.json: in tokenizers, ids differ in {counts[0]} of {len(joined)} texts made from the pieces, and in "
        f"{counts[1]} of {len(changed)} with characters that normalization changes; a .model keeps all ids"
    )
    return other


def _steps(normalizer: SentencePieceNormalizer) -> list[dict[str, Any]]:
    """The normalizers of a tokenizer.json."""
    if normalizer.treat_whitespace_as_suffix and normalizer.add_dummy_prefix:
        raise ConfigError("normalizer: treat_whitespace_as_suffix has no counterpart in tokenizer.json; write a .model")
    steps: list[dict[str, Any]] = []
    if normalizer.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": normalizer.charsmap})
    if normalizer.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": BOTH_ENDS}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if normalizer.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if normalizer.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE if normalizer.escape_whitespaces else " "})
    return steps


def sample_texts(tokenizer: UnigramTokenizer) -> tuple[list[str], list[str]]:
    """Texts of random pieces, and the same texts with up to three characters of the table after each piece."""
    random, pieces = Random(0), [piece.replace(SPACE, " ") for piece in tokenizer.model.pieces.scores]
    assert isinstance(tokenizer.normalizer, SentencePieceNormalizer)
    charsmap = tokenizer.normalizer.charsmap
    characters = read_base64(charsmap).characters if charsmap else ""
    joined, changed = [], []
    for _ in range(TEXTS if pieces else 0):
        drawn = random.choices(pieces, k=random.randint(1, MOST_PIECES))
        joined.append("".join(drawn))
        if characters:
            changed.append("".join(x + "".join(random.choices(characters, k=random.randint(0, 3))) for x in drawn))
    return joined, changed
