"""GPT-2's vocab.json and merges.txt.

Ids are the same in tinylm and in other programs. The files do not record the pattern, which is GPT-2's.
"""

from pathlib import Path

from tinylm.errors import ConfigError
from tinylm.files import write_json, write_text
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.formats.merges import vocabulary


def read_gpt2(vocab_path: str | Path, merges_path: str | Path) -> BPETokenizer:
    """Reads vocab.json and merges.txt. Errors as in `BPETokenizer.from_gpt2`."""
    return BPETokenizer.from_gpt2(vocab_path, merges_path)


VOCABULARY, MERGES = FileKind("a vocabulary", rb'\{\s*".*?": \d+'), FileKind("a list of merges", b"#version: 0.2\n")


def write_gpt2(tokenizer: Tokenizer, folder: str | Path, overwrite: bool = False) -> None:
    """Writes vocab.json and merges.txt. The vocabulary includes the special tokens, unmarked.

    Raises:
        CannotCreateError: if a file exists and `overwrite` is false, or it is not such a file.
        ConfigError: unless the tokenizer is BPE with the pattern gpt2; if a special token has an ordinary token's name.
    """
    for name, kind in (("vocab.json", VOCABULARY), ("merges.txt", MERGES)):
        check_target(Path(folder) / name, kind, overwrite)
    refuse_own_class(tokenizer, "vocab.json and merges.txt")
    if not isinstance(tokenizer, BPETokenizer):
        raise ConfigError(f"tokenizer: GPT-2's files need kind bpe, got {tokenizer.kind}; write tokenizer.json")
    if tokenizer.pattern != "gpt2":
        raise ConfigError(f"pattern: GPT-2's files need gpt2, got {tokenizer.pattern!r}; write tokenizer.json")
    if tokenizer.missing:
        raise ConfigError("tokenizer: GPT-2's files need all 256 bytes, which this one lacks; write tokenizer.json")
    names, ids = tokenizer.names_and_ids()
    vocab = vocabulary(names, list(tokenizer.special_tokens), ids)
    merges = [f"{names[left]} {names[right]}\n" for left, right in tokenizer.merges]
    write_json(Path(folder) / "vocab.json", vocab)
    write_text(Path(folder) / "merges.txt", "".join(["#version: 0.2\n", *merges]))
