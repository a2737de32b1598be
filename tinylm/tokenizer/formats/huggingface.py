"""Hugging Face's tokenizer.json, which describes tokenization as a pipeline:

    text > added_tokens > normalizer > pre_tokenizer > model > post_processor > ids > decoder > text

Files equivalent to a BPETokenizer are read, and so are files that tinylm wrote from any tokenizer. Everything else is
refused, with the name of the field that would change ids. Added tokens are tinylm's special tokens. Hugging Face
matches them in every text, tinylm only if `allow_special` is set. A letter that is too new for the Unicode version of
one of the two programs may be split differently.

Not supported: normalizers, tokens added around a text, models other than byte-level BPE, ordinary added tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex

from tinylm.errors import ConfigError
from tinylm.files import read_json, write_json
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.alphabet import ALPHABET, BYTE_IDS
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.byte import ByteTokenizer
from tinylm.tokenizer.char import UNKNOWN, CharTokenizer
from tinylm.tokenizer.fast.pretokenize import PATTERNS, WordSplitter
from tinylm.tokenizer.formats.merges import NamedMerges, reading, require, vocabulary
from tinylm.tokenizer.word import UNKNOWN_WORD, WordTokenizer

# --- patterns

CHARACTER, ALL = r"[\s\S]", r"[\s\S]+"  # the patterns of CharTokenizer and ByteTokenizer
# GPT-4's pattern as Llama 3's file spells it: equivalent, without possessive quantifiers
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLINGS = PATTERNS | {"gpt4": GPT4}
# SmolLM's pattern: digits are split off first, then GPT-2's, so white space before a digit is one word
DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# The syntax that Hugging Face's engine (Oniguruma) and `regex` read alike. Excluded: \w, which matches ² in Oniguruma
# only; possessive {1,3}+; nested sets; and, under (?i:, pairs that Oniguruma folds to one letter, such as ss and ß.
ESCAPE = r"\\(?:[rntfsSdD]|[pP]\{(?:[LMNPSZC][a-z]?|Han)\}|u[0-9a-fA-F]{4}|\W)"
FOLDED = r"'?(?:(?!(?i:\w*(?:ss|st|ff|fi|fl)))[a-zA-Z]+|\[[a-zA-Z]+\])"
PORTABLE = regex.compile(
    rf"(?:[^\\\[\](){{}}?*+^$]|{ESCAPE}|\[\^?(?:[^\\\[\]&-]|-(?!-)|{ESCAPE})+\]|\(\?i:{FOLDED}(?:\|{FOLDED})*\)"
    r"|\(\?:|\(\?!|\)|[?*+][?+]?+|\{\d+(?:,\d*)?\}(?![?+]))++"
)


def spelling(pattern: str) -> str:
    """The regular expression that is written for a pattern.

    Raises:
        ConfigError: if Hugging Face's engine might read it differently, or it is invalid.
    """
    expression = SPELLINGS.get(pattern, pattern)
    WordSplitter(expression)
    try:
        portable = PORTABLE.fullmatch(expression, timeout=0.5) and not regex.match(expression, "", timeout=0.5)
    except TimeoutError:
        portable = False
    if not portable:
        raise ConfigError(
            rf"pattern: {pattern!r} may split text differently in Hugging Face's engine; use only letters, sets, \s, "
            r"\d, \p{L}, (?:...), (?!...), ?, * and +, and do not match the empty string"
        )
    return expression


def _pattern(pre_tokenizer: Any) -> str:
    """The pattern of a pre_tokenizer; its name if it has one."""
    steps = pre_tokenizer["pretokenizers"] if _type(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, **more}]:
            return "gpt2" if more.get("use_regex", True) else ALL
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, **more},
        ] if more.get("use_regex", True):
            return DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            names = {SPELLINGS[name]: name for name in PATTERNS} | {PATTERNS[name]: name for name in PATTERNS}
            return names.get(expression) or spelling(expression)
    raise _unknown("pre_tokenizer", pre_tokenizer)


# --- writing

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
NO_OPTIONS = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
NO_OPTIONS |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


TOKENIZER_JSON = FileKind("a tokenizer.json", rb'\{\s*"version": "1.0",\s*"truncation": null')


def write_tokenizer_json(tokenizer: Tokenizer, path: str | Path, overwrite: bool = False) -> None:
    """Writes a tokenizer for `tokenizers.Tokenizer.from_file` and `PreTrainedTokenizerFast(tokenizer_file=)`.

    Raises:
        CannotCreateError: if the file exists and is not to be replaced, or is something else.
        ConfigError: if ids or decoded text might differ there, because of a custom pattern or the name of a special
            token.
    """
    check_target(path, TOKENIZER_JSON, overwrite)
    write_json(path, to_tokenizer_json(tokenizer))


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json. Errors as in `write_tokenizer_json`."""
    match tokenizer:
        case BPETokenizer():
            names, ids = tokenizer.names_and_ids()
            merges = [[names[left], names[right]] for left, right in tokenizer.merges]
            steps = _byte_level(names, tokenizer, ids, merges, tokenizer.pattern)
        case ByteTokenizer():
            names = [ALPHABET[token] for token in BYTE_IDS]
            steps = _byte_level(names, tokenizer, range(tokenizer.vocab_size), [], ALL)
        case CharTokenizer():
            steps = _word_level(list(tokenizer.characters), tokenizer, CHARACTER, UNKNOWN)
        case WordTokenizer():
            steps = _word_level(tokenizer.words, tokenizer, PATTERNS["words"], UNKNOWN_WORD)
        case _:
            raise ConfigError(f"tokenizer: kind {tokenizer.kind} cannot be written as tokenizer.json")
    added = [{"id": token, "content": name, **FLAGS} for name, token in tokenizer.special_tokens.items()]
    nothing = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])
    return {"version": "1.0", **nothing, "added_tokens": added, **steps}


def _byte_level(names: list[str], tokenizer: Tokenizer, ids: Sequence[int], merges: list, pattern: str) -> dict:
    """The steps of byte-level BPE. Special tokens are in the vocabulary too; otherwise Hugging Face renumbers them."""
    _check_special(tokenizer.special_tokens)
    byte_level = BYTE_LEVEL | {"add_prefix_space": False, "use_regex": pattern == "gpt2"}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    if pattern not in ("gpt2", ALL):
        split["pattern"] = {"Regex": spelling(pattern)}
        byte_level = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    vocab = vocabulary(names, list(tokenizer.special_tokens), ids)
    model = {"type": "BPE", **NO_OPTIONS, "vocab": vocab, "merges": merges}
    return {"pre_tokenizer": byte_level, "decoder": BYTE_LEVEL, "model": model}


def _word_level(words: list[str], tokenizer: Tokenizer, pattern: str, unknown: str) -> dict:
    """The steps of a table of words. Without the special token `unknown`, unknown words raise an error in both."""
    vocab = vocabulary(words, list(tokenizer.special_tokens), range(tokenizer.vocab_size))
    return {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
    }


def _check_special(names: Sequence[str] | dict[str, int]) -> None:
    for name in names:
        if set(name) <= set(ALPHABET) and not name.isascii():
            raise ConfigError(f"special_tokens: {name!r} would be decoded as the bytes its characters name; rename it")


# --- reading

# Field values that leave ids unchanged. A byte-level model has no unknown characters, so unk_token has no effect.
HARMLESS = {
    "version": ("1.0",),
    "truncation": (None,),
    "padding": (None,),
    "normalizer": (None,),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.byte_fallback": (None, False),
}
FIELDS = HARMLESS.keys() | {"added_tokens", "pre_tokenizer", "post_processor", "decoder", "model"}
FIELDS |= {f"model.{name}" for name in ("type", "vocab", "merges", "unk_token", "fuse_unk", "ignore_merges")}


def is_tokenizer_json(values: Any) -> bool:
    """Whether these values look like a tokenizer.json."""
    return isinstance(values, dict) and isinstance(values.get("model"), dict) and "vocab" in values["model"]


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Reads byte-level BPE, or a file of `write_tokenizer_json`. All added tokens must be special.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, of another format, or has an unsupported field that would change ids.
    """
    return from_tokenizer_json(read_json(require(path)), source=str(path))


def from_tokenizer_json(values: Any, source: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes; `source` is its name in errors, as in `read_tokenizer_json`."""
    with reading(source, "a Hugging Face tokenizer.json"):
        kind = values["model"].get("type", "BPE" if "merges" in values["model"] else None)  # old files omit it
        if kind == "WordLevel":
            return _from_word_level(values)
        if kind != "BPE":
            raise ConfigError(f'model.type is "{kind}"; tinylm reads byte-level BPE, and what it has written itself')
        return _from_byte_level(values)


def _from_byte_level(values: dict[str, Any]) -> Tokenizer:
    _check_fields(values)
    model, pattern, table = values["model"], _pattern(values.get("pre_tokenizer")), NamedMerges()
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        table.add(left, right)
    table.finish()
    special = _special_tokens(values.get("added_tokens") or [], model["vocab"])
    for name in model["vocab"] | special:
        if (name in table) == (name in special):
            problem = "an added token and an ordinary one" if name in special else "neither merged nor an added token"
            raise ConfigError(f"model.vocab: {name!r} is {problem}")
    for name in table.names if model.get("ignore_merges") else ():
        if not table.is_whole(name):
            raise ConfigError(f"model.ignore_merges is true, but the merges do not make {name!r} from its bytes")
    tokenizer = BPETokenizer(**table.arguments(model["vocab"] | special, list(special)), pattern=pattern)
    plain = ByteTokenizer(list(special))
    found = (pattern, tokenizer.token_bytes, tokenizer.special_tokens)
    return plain if found == (ALL, plain.token_bytes, plain.special_tokens) else tokenizer


def _special_tokens(added: list[dict[str, Any]], vocab: dict[str, int]) -> dict[str, int]:
    """Name -> id of the added tokens. Hugging Face numbers those outside the vocabulary, whatever the file says."""
    following = len(vocab)
    for token in added:
        expected = vocab.get(token["content"], following)
        following = max(following, expected + 1)
        wrong = [flag for flag in ("single_word", "lstrip", "rstrip", "special") if token[flag] != FLAGS[flag]]
        if wrong:
            raise _unknown(f"added_tokens: {token['content']!r}: {wrong[0]}", token[wrong[0]])
        if token["id"] != expected:
            raise ConfigError(
                f"added_tokens: {token['content']!r}: id is {token['id']}, but Hugging Face uses {expected}"
            )
        if token["normalized"] != added[0]["normalized"]:
            raise ConfigError("added_tokens: normalized must be the same for all added tokens")
    _check_special([token["content"] for token in added])
    return {token["content"]: token["id"] for token in added}


def _check_fields(values: dict[str, Any]) -> None:
    """Checks every field but the pre_tokenizer and the added tokens."""
    found = values | {f"model.{name}": value for name, value in values["model"].items()}
    for name, harmless in HARMLESS.items():
        if found.get(name) not in harmless:
            raise _unknown(name, found.get(name))
    for name in found:
        if name not in FIELDS:
            raise _unknown(name, found[name])
    if not _adds_nothing(values.get("post_processor")):
        raise _unknown("post_processor", values["post_processor"])
    if _type(values.get("decoder")) not in (None, "ByteLevel"):
        raise _unknown("decoder", values["decoder"])


def _adds_nothing(post_processor: Any) -> bool:
    """Whether a post_processor leaves ids unchanged."""
    match post_processor:
        case {"type": "Sequence", "processors": list(steps)}:
            return all(map(_adds_nothing, steps))
        case {"type": "TemplateProcessing", "single": list(parts)}:
            return all("Sequence" in part for part in parts)
    return _type(post_processor) in (None, "ByteLevel")


def _from_word_level(values: dict[str, Any]) -> Tokenizer:
    """A table of words that tinylm wrote. It is written again and compared; any difference is refused."""
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


def _type(step: Any) -> str | None:
    """The type of a step, or None."""
    return None if step is None else step["type"]


def _unknown(field: str, value: Any) -> ConfigError:
    shown = regex.sub(r'("(?:[^"\\]|\\.){30})(?:[^"\\]|\\.)+"', r'\1..."', json.dumps(value))  # shortens long patterns
    return ConfigError(f"{field} is {shown if len(shown) < 400 else shown[:400] + '...'}; tinylm does not support this")
