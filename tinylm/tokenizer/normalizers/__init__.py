"""Normalizers: changes of a text before it is split, with offsets into the original text.

base            the interface, and NFC
bert            lower case, accents, Chinese characters, punctuation, as for BERT
sentencepiece   SentencePiece's, with its table of replacements (charsmap, charsmap_rules, double_array)
sequence        the normalizers of a tokenizer.json, one after the other
metaspace       spaces as ▁
"""

from tinylm.tokenizer.normalizers.base import NFC, Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer
from tinylm.tokenizer.normalizers.charsmap import Charsmap, Precompiled
from tinylm.tokenizer.normalizers.metaspace import Spacing
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.normalizers.sequence import Rewriting

__all__ = [
    "NFC",
    "BertNormalizer",
    "Charsmap",
    "Normalizer",
    "Precompiled",
    "Rewriting",
    "SentencePieceNormalizer",
    "Spacing",
]
