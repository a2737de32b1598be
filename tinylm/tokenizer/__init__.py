"""Tokenizers: text to token ids and back. Needs only NumPy and `regex`."""

from tinylm.tokenizer.base import END_OF_TEXT, Chat, Tokenizer, tokenizer_class
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.byte import ByteTokenizer
from tinylm.tokenizer.char import UNKNOWN, CharTokenizer
from tinylm.tokenizer.formats.gpt2 import read_gpt2, write_gpt2
from tinylm.tokenizer.formats.huggingface import read_tokenizer_json, write_tokenizer_json
from tinylm.tokenizer.formats.sentencepiece import read_sentencepiece
from tinylm.tokenizer.formats.sentencepiece_writer import write_sentencepiece
from tinylm.tokenizer.formats.tiktoken import read_tiktoken, write_tiktoken
from tinylm.tokenizer.formats.vocab_txt import write_vocab_txt
from tinylm.tokenizer.load import load_tokenizer
from tinylm.tokenizer.unigram import UnigramTokenizer
from tinylm.tokenizer.word import UNKNOWN_WORD, WordTokenizer
from tinylm.tokenizer.wordpiece import WordPieceTokenizer

__all__ = [
    "END_OF_TEXT",
    "UNKNOWN",
    "UNKNOWN_WORD",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Chat",
    "Tokenizer",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "read_gpt2",
    "read_sentencepiece",
    "read_tiktoken",
    "read_tokenizer_json",
    "tokenizer_class",
    "write_gpt2",
    "write_sentencepiece",
    "write_tiktoken",
    "write_tokenizer_json",
    "write_vocab_txt",
]
