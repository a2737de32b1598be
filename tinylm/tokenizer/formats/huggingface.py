"""Hugging Face's tokenizer.json, which describes tokenization as a pipeline:

    text > added_tokens > normalizer > pre_tokenizer > model > post_processor > ids > decoder > text

Files equivalent to a BPETokenizer, WordPieceTokenizer, UnigramTokenizer or PipelineTokenizer are read, and all files
that tinylm writes. Everything else is refused, with the name of the field that would change ids. Hugging Face matches
special tokens in every text, tinylm only if `allow_special` is set; both match ordinary added tokens in every text. A
letter that is too new for the Unicode version of one of the two programs may be split differently.

Not supported: normalizers other than NFC for BPE; for WordPiece, normalizers that join characters or replace strings.
"""

from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError
from tinylm.files import read_json, write_json
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.byte import ByteTokenizer
from tinylm.tokenizer.char import UNKNOWN, CharTokenizer
from tinylm.tokenizer.fast.pretokenize import PATTERNS
from tinylm.tokenizer.formats.bpe import (
    bytes_pipeline_steps,
    bytes_steps,
    characters_steps,
    read_bytes,
    read_characters,
)
from tinylm.tokenizer.formats.merges import reading, require, vocabulary
from tinylm.tokenizer.formats.steps import CHARACTER, FLAGS, read_template, unknown
from tinylm.tokenizer.formats.unigram import read_unigram, unigram_steps
from tinylm.tokenizer.formats.wordpiece import from_wordpiece, wordpiece_steps
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.unigram import UnigramTokenizer
from tinylm.tokenizer.word import UNKNOWN_WORD, WordTokenizer
from tinylm.tokenizer.wordpiece import WordPieceTokenizer

# --- writing

TOKENIZER_JSON = FileKind("a tokenizer.json", rb'\{\s*"version": "1.0",\s*"truncation": null')


def write_tokenizer_json(tokenizer: Tokenizer, path: str | Path, overwrite: bool = False) -> None:
    """Writes a tokenizer for `tokenizers.Tokenizer.from_file` and `PreTrainedTokenizerFast(tokenizer_file=)`.

    Raises:
        CannotCreateError: if the file exists and `overwrite` is false, or it is not such a file.
        ConfigError: if ids or decoded text might differ in Hugging Face, because of a custom pattern or the name of a
            special token.
    """
    check_target(path, TOKENIZER_JSON, overwrite)
    write_json(path, to_tokenizer_json(tokenizer))


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json. Errors as in `write_tokenizer_json`."""
    refuse_own_class(tokenizer, "tokenizer.json")
    added = [AddedToken(name, token) for name, token in tokenizer.special_tokens.items()]
    match tokenizer:
        case PipelineTokenizer():
            added = tokenizer.added
            steps = _pipeline_steps(tokenizer)
        case BPETokenizer() | ByteTokenizer():
            steps = bytes_steps(tokenizer)
        case CharTokenizer():
            steps = _word_level(list(tokenizer.characters), tokenizer, CHARACTER, UNKNOWN)
        case UnigramTokenizer():
            steps = unigram_steps(tokenizer)
        case WordTokenizer():
            steps = _word_level(tokenizer.words, tokenizer, PATTERNS["words"], UNKNOWN_WORD)
        case WordPieceTokenizer():
            steps = wordpiece_steps(tokenizer)
        case _:
            raise ConfigError(f"tokenizer: kind {tokenizer.kind} cannot be written as tokenizer.json")
    listed = [
        {"id": token.id, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}} for token in added
    ]
    nothing = dict.fromkeys(["truncation", "padding", "normalizer"]) | {"post_processor": _template(tokenizer)}
    return {"version": "1.0", **nothing, "added_tokens": listed, **steps}


def _template(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The post_processor that puts marks around a text; None if the original file had none."""
    begin, template = tokenizer.marks.begin, tokenizer.origin.get("template")
    if isinstance(template, dict):
        return template
    if begin is None or not tokenizer.adds_begin:
        return None
    name = next(name for name, token in tokenizer.special_tokens.items() if token == begin)
    first, text, second = (
        {"SpecialToken": {"id": name, "type_id": 0}},
        *({"Sequence": {"id": each, "type_id": kind}} for each, kind in (("A", 0), ("B", 1))),
    )
    tokens = {name: {"id": name, "ids": [begin], "tokens": [name]}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": tokens,
    }


def _pipeline_steps(tokenizer: PipelineTokenizer) -> dict[str, Any]:
    match tokenizer.core:
        case UnigramTokenizer():
            return unigram_steps(tokenizer.core)
        case WordPieceTokenizer():
            return wordpiece_steps(tokenizer.core)
        case BPETokenizer():
            return bytes_pipeline_steps(tokenizer)
    return characters_steps(tokenizer)


def _word_level(words: list[str], tokenizer: Tokenizer, pattern: str, unknown: str) -> dict:
    """The steps for a table of words. Without the special token `unknown`, both programs refuse unknown words."""
    vocab = vocabulary(words, list(tokenizer.special_tokens), range(tokenizer.vocab_size))
    return {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
    }


# --- reading

# Field values that leave ids unchanged. Truncation and padding are harmless too: they apply only on request.
HARMLESS = {
    "version": ("1.0",),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
}
FIELDS = HARMLESS.keys() | {"truncation", "padding", "normalizer", "added_tokens", "pre_tokenizer", "post_processor"}
FIELDS |= {"decoder", "model"} | {f"model.{name}" for name in ("type", "vocab", "merges", "unk_token", "fuse_unk")}
FIELDS |= {"model.byte_fallback", "model.ignore_merges"}


def is_tokenizer_json(values: Any) -> bool:
    """Whether these values look like a tokenizer.json."""
    return isinstance(values, dict) and isinstance(values.get("model"), dict) and "vocab" in values["model"]


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Reads BPE on bytes, or on characters with byte fallback, or a file of `write_tokenizer_json`.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if the file is damaged, of another format, or has an unsupported field that would change ids.
    """
    return from_tokenizer_json(read_json(require(path)), source=str(path))


def from_tokenizer_json(values: Any, source: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes; `source` is its name in errors, as in `read_tokenizer_json`."""
    with reading(source, "a Hugging Face tokenizer.json"):
        kind = values["model"].get("type", "BPE" if "merges" in values["model"] else None)  # old files omit it
        if kind == "WordLevel":
            return _from_word_level(values)
        if kind == "Unigram":
            return with_template(read_unigram(values), values.get("post_processor"))
        if kind == "WordPiece":
            _check_fields({name: value for name, value in values.items() if name != "model"})
            return with_template(from_wordpiece(values), values.get("post_processor"))
        if kind != "BPE":
            known = "BPE, Unigram, WordPiece, and what it has written itself"
            raise ConfigError(f'model.type is "{kind}"; tinylm reads {known}')
        _check_fields(values)
        tokenizer = read_characters(values) if values["model"].get("byte_fallback") else read_bytes(values)
        return with_template(tokenizer, values.get("post_processor"))


def with_template(tokenizer: Tokenizer, post_processor: Any) -> Tokenizer:
    """The tokenizer with marks from a post_processor: the ids that it puts around a text."""
    (begin, end), marks = read_template(post_processor), tokenizer.marks
    if end is None:
        return tokenizer if begin is None else tokenizer.with_marks(begin, marks.end, marks.stops)
    return tokenizer.with_marks(begin, end, [*marks.stops, end]).with_origin({"template": post_processor})


def _check_fields(values: dict[str, Any]) -> None:
    """Checks the fields that no step reads."""
    found = values | {f"model.{name}": value for name, value in values.get("model", {}).items()}
    for name, harmless in HARMLESS.items():
        if found.get(name, harmless[0]) not in harmless:
            raise unknown(name, found.get(name))
    for name in found:
        if name not in FIELDS:
            raise unknown(name, found[name])


def _from_word_level(values: dict[str, Any]) -> Tokenizer:
    """Reads a table of words that tinylm wrote. It is exported again and compared; any difference is refused."""
    vocab, special = values["model"]["vocab"], [token["content"] for token in values.get("added_tokens") or []]
    words = sorted(vocab.keys() - set(special), key=vocab.__getitem__)
    match values.get("pre_tokenizer"):
        case {"pattern": {"Regex": str(pattern)}}:
            pass
        case _:
            raise ConfigError("model.type is WordLevel, which is read only as tinylm writes it; use the kind word")
    tokenizer = CharTokenizer("".join(words), special) if pattern == CHARACTER else WordTokenizer(words, special)
    for field, value in to_tokenizer_json(tokenizer).items():
        if values.get(field) != value:
            raise ConfigError(f"{field}: a WordLevel model is read only as tinylm writes it, and this differs")
    return tokenizer
