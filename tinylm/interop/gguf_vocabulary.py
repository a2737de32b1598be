"""A tokenizer in the terms of GGUF and llama.cpp: names and types of all tokens, merges or scores, special ids.

llama.cpp selects its pre-tokenizer by name. A pattern without such a name is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.errors import ConfigError, notice
from tinylm.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from tinylm.tokenizer.alphabet import ALPHABET, BYTE_IDS
from tinylm.tokenizer.base import refuse_own_class
from tinylm.tokenizer.characters import BYTE_NAMES, CharacterBPE
from tinylm.tokenizer.fast.pretokenize import DIGITS, QWEN2
from tinylm.tokenizer.formats.scores import UNKNOWN as UNKNOWN_PIECE
from tinylm.tokenizer.formats.scores import check_added, to_pieces
from tinylm.tokenizer.pipeline import PipelineTokenizer

# Our patterns -> llama.cpp's names. dbrx is llama-bpe without the rule that a word in the vocabulary is never merged.
PRE_TOKENIZERS = {"gpt2": "gpt-2", "gpt4": "dbrx", DIGITS: "smollm", QWEN2: "qwen2"}
NO_MERGES = [
    "! !"
]  # an empty list is refused by llama.cpp; this merge is harmless, since llama.cpp splits non-tokens into bytes
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: gpt2 (byte-level BPE) or llama (pieces with scores)
        names: of all tokens
        types: of all tokens
        merges: of gpt2
        pre: name of the pre-tokenizer, of gpt2
        scores: of llama
        prefix: whether a space is put before every text
    """

    model: str
    names: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    scores: list[float]
    prefix: bool


def gguf_vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The vocabulary of a model with `rows` embeddings; embeddings without a token become unused tokens.

    Raises:
        ConfigError: if llama.cpp would give other ids, or stop at an ordinary token.
    """
    refuse_own_class(tokenizer, "GGUF")
    if tokenizer.vocab_size > rows:
        raise ConfigError(f"vocab_size: tokenizer {tokenizer.vocab_size}, model {rows}")
    characters = isinstance(tokenizer, PipelineTokenizer) and isinstance(tokenizer.core, CharacterBPE)
    found = _pieces(tokenizer, rows) if characters else _byte_level(tokenizer, rows)
    if len(set(found.names)) < rows:
        raise ConfigError("special_tokens: two tokens would have one name in GGUF; rename those like [PAD7]")
    if tokenizer.end_of_text is None and UNUSED not in found.types:
        last = 2 if characters else 11
        raise ConfigError(f"the tokenizer has no end-of-text token, so llama.cpp would stop at token {last}")
    return found


def _byte_level(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    core, plain = tokenizer, set()
    special = set(tokenizer.special_tokens.values())
    if isinstance(tokenizer, PipelineTokenizer):
        check_added(tokenizer, "llama.cpp")
        if tokenizer.prefix != "none":
            raise ConfigError("tokenizer: a space is put before texts, which llama.cpp does not do for byte-level BPE")
        if tokenizer.normalization:
            notice("llama.cpp does not normalize text to NFC: text in another form is encoded differently there")
        core, plain = tokenizer.core, {token.id for token in tokenizer.added if not token.special}
    if isinstance(core, BPETokenizer):
        names, ids = core.names_and_ids()
        merges = [f"{names[left]} {names[right]}" for left, right in core.merges]
        pattern = core.pattern
    elif isinstance(core, ByteTokenizer):
        names, ids, merges, pattern = [ALPHABET[token] for token in BYTE_IDS], range(256), [], "gpt2"
    else:
        raise ConfigError(f"tokenizer: kind {tokenizer.kind} has no counterpart in llama.cpp; kind bpe has")
    if pattern not in PRE_TOKENIZERS:
        raise ConfigError(f"tokenizer: pattern {pattern!r} is not one of llama.cpp's pre-tokenizers; pattern gpt2 is")
    found = {token: name for name, token in zip(names, ids, strict=False) if token >= 0}
    added = {token: tokenizer.token_bytes[token].decode() for token in special | plain}
    if taken := {*found.values()} & {*added.values()} - {found.get(token) for token in added}:
        raise ConfigError(f"special_tokens: {min(taken)!r} is the name of an ordinary token in GGUF; rename it")
    types = _types({*found, *added}, special, plain, rows)
    return Vocabulary(
        "gpt2", _names(found | added, rows), types, merges or NO_MERGES, PRE_TOKENIZERS[pattern], [], False
    )


def _pieces(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    pieces = to_pieces(tokenizer, "llama.cpp")
    types = _types({*pieces.names}, pieces.special, pieces.plain, rows)
    for token, name in pieces.names.items():
        if name in BYTE_NAMES:
            types[token] = BYTE
        elif name == UNKNOWN_PIECE:
            types[token] = UNKNOWN
    scores = [pieces.scores.get(token, 0.0) for token in range(rows)]
    return Vocabulary("llama", _names(pieces.names, rows), types, [], "default", scores, pieces.prefix)


def _names(found: Mapping[int, str], rows: int) -> list[str]:
    return [found.get(token, f"[PAD{token}]") for token in range(rows)]


def _types(found: set[int], special: set[int], plain: set[int], rows: int) -> list[int]:
    kinds = {CONTROL: special, USER_DEFINED: plain, NORMAL: found}
    return [next((kind for kind, ids in kinds.items() if token in ids), UNUSED) for token in range(rows)]


def add_tokenizer(writer: Any, gguf: Any, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Writes the vocabulary and the marks of its tokenizer with a `GGUFWriter`; `gguf` is the package."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.names)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.prefix)
    begin, end, stops = tokenizer.marks
    last = vocabulary.types.index(UNUSED) if end is None else end
    writer.add_add_bos_token(begin is not None)
    writer.add_add_eos_token(False)
    writer.add_bos_token_id(last if begin is None else begin)  # its default would be an ordinary token
    writer.add_eos_token_id(last)
    writer.add_pad_token_id(last)
    if UNKNOWN in vocabulary.types:
        writer.add_unk_token_id(vocabulary.types.index(UNKNOWN))
    others = [token for token in stops if token != end]
    for key, token in zip((gguf.Keys.Tokenizer.EOT_ID, gguf.Keys.Tokenizer.EOM_ID), others, strict=False):
        writer.add_uint32(key, token)
    if len(others) > 2:
        notice(f"llama.cpp will not stop at {', '.join(vocabulary.names[token] for token in others[2:])}")
