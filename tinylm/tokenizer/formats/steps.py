"""The steps of a tokenizer.json, read into the options of our tokenizers.

Each function takes the value of one field. It raises ConfigError, with the field, for anything that would change ids
and is not supported.
"""

import json
from typing import Any

import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.fast.pretokenize import DIGITS, PATTERNS, WordSplitter

CHARACTER, ALL = r"[\s\S]", r"[\s\S]+"  # the patterns of CharTokenizer and ByteTokenizer
# GPT-4's pattern as Llama 3's file spells it: equivalent, without possessive quantifiers
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLINGS = PATTERNS | {"gpt4": GPT4}

# Syntax that means the same in Hugging Face's engine (Oniguruma) and in `regex`. Excluded: \w, which matches ² only in
# Oniguruma; possessive {1,3}+; nested sets; and, under (?i:, pairs that Oniguruma folds to one letter: ss and ß.
ESCAPE = r"\\(?:[rntfsSdD]|[pP]\{(?:[LMNPSZC][a-z]?|Han)\}|u[0-9a-fA-F]{4}|\W)"
FOLDED = r"'?(?:(?!(?i:\w*(?:ss|st|ff|fi|fl)))[a-zA-Z]+|\[[a-zA-Z]+\])"
PORTABLE = regex.compile(
    rf"(?:[^\\\[\](){{}}?*+^$]|{ESCAPE}|\[\^?(?:[^\\\[\]&-]|-(?!-)|{ESCAPE})+\]|\(\?i:{FOLDED}(?:\|{FOLDED})*\)"
    r"|\(\?:|\(\?!|\)|[?*+][?+]?+|\{\d+(?:,\d*)?\}(?![?+]))++"
)


def spelling(pattern: str) -> str:
    """The regular expression of a pattern for tokenizer.json.

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


def read_pattern(pre_tokenizer: Any) -> tuple[str, bool]:
    """The pattern of a byte-level pre_tokenizer, as a name if it has one, and whether it prepends a space."""
    steps = pre_tokenizer["pretokenizers"] if type_of(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": bool(prefix), **more}]:
            return "gpt2" if more.get("use_regex", True) else ALL, prefix
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, **more},
        ] if more.get("use_regex", True):
            return DIGITS, False
        case [
            {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            names = {SPELLINGS[name]: name for name in PATTERNS} | {PATTERNS[name]: name for name in PATTERNS}
            return names.get(expression) or spelling(expression), False
    raise unknown("pre_tokenizer", pre_tokenizer)


def read_normalizer(normalizer: Any) -> list[str]:
    """The steps of a normalizer: `nfc`, `prepend` (of a ▁) and `replace` (of spaces by ▁)."""
    found = []
    for step in flat(normalizer, "normalizers"):
        match step:
            case {"type": "NFC"}:
                found.append("nfc")
            case {"type": "Prepend", "prepend": "▁"}:
                found.append("prepend")
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                found.append("replace")
            case _:
                raise unknown("normalizer", normalizer)
    if found not in ([], ["nfc"], ["replace"], ["prepend", "replace"], ["replace", "prepend"]):
        raise unknown("normalizer", normalizer)
    return found


def read_metaspace(pre_tokenizer: Any) -> tuple[str, bool] | None:
    """The prefix of a Metaspace pre_tokenizer, as in PipelineTokenizer, and whether it splits words; None for None."""
    match pre_tokenizer:
        case None:
            return None
        case {"type": "Metaspace", "replacement": "▁", **more}:
            scheme = more.get("prepend_scheme", "always" if more.get("add_prefix_space", True) else "never")
            prefix = {"always": "each", "first": "first", "never": "none"}.get(scheme)
            known = more.keys() <= {"prepend_scheme", "add_prefix_space", "split", "str_rep"}
            agrees = more.get("add_prefix_space", scheme != "never") == (scheme != "never")
            if prefix and known and agrees and type(more.get("split", True)) is bool:
                return prefix, more.get("split", True)
    raise unknown("pre_tokenizer", pre_tokenizer)


MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def without_idle_split(pre_tokenizer: Any, normalizer: Any) -> Any:
    """The pre_tokenizer; None if it splits at spaces but the normalizer leaves no spaces, as in Gemma's file."""
    match pre_tokenizer:
        case {"type": "Split", "pattern": {"String": " "}, "behavior": str(), "invert": False, **more} if not more:
            steps = flat(normalizer, "normalizers")
            later = steps[steps.index(MARK) + 1 :] if MARK in steps else []
            if MARK in steps and all(step["type"] == "Prepend" and " " not in step["prepend"] for step in later):
                return None
    return pre_tokenizer


def read_decoder(decoder: Any) -> bool:
    """Whether the decoder of a model of characters drops the first space."""
    match flat(decoder, "decoders"):
        case [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            if not rest:
                return False
            if rest == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
                return True
    raise unknown("decoder", decoder)


def read_template(post_processor: Any) -> tuple[int | None, int | None]:
    """The ids that a post_processor puts before and after every text, each or None."""
    before: list[Any] = []
    after: list[Any] = []
    for step in flat(post_processor, "processors"):
        match step:
            case {"type": "ByteLevel"}:
                pass
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(), first], "sep": [str(), last]}:
                before, after = [first, *before], [*after, last]
            case {"type": "TemplateProcessing", "single": list(parts), **more}:
                first, last = _around(parts, more.get("special_tokens"))
                before, after = first + before, after + last
            case _:
                raise unknown("post_processor", post_processor)
    if len(before) > 1 or len(after) > 1 or any(type(each) is not int for each in before + after):
        raise unknown("post_processor", post_processor)
    return before[0] if before else None, after[0] if after else None


def _around(parts: list[Any], tokens: Any) -> tuple[list[Any], list[Any]]:
    """The ids before and after the text in the parts of a template."""
    found: list[list[Any]] = [[]]
    for part in parts:
        match part:
            case {"Sequence": {"id": "A"}}:
                found.append([])
            case {"SpecialToken": {"id": str(name)}} if name in (tokens or {}):
                found[-1] += tokens[name]["ids"]
            case _:
                raise unknown("post_processor", parts)
    if len(found) != 2:
        raise unknown("post_processor", parts)
    return found[0], found[1]


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_added(added: list[dict[str, Any]], vocab: dict[str, int]) -> list[AddedToken]:
    """The added tokens. Hugging Face ignores the file's ids of tokens outside the vocabulary and numbers them."""
    following, found = len(vocab), []
    for token in added:
        expected = vocab.get(token["content"], following)
        following = max(following, expected + 1)
        name = f"added_tokens: {token['content']!r}"
        if token["id"] != expected:
            raise ConfigError(f"{name}: id is {token['id']}, but Hugging Face uses {expected}")
        flags = {flag: token[flag] for flag in FLAGS}
        for flag, value in flags.items():
            if type(value) is not bool:
                raise unknown(f"{name}: {flag}", value)
        found.append(AddedToken(token["content"], expected, **flags))
    return found


def flat(step: Any, inner: str) -> list[Any]:
    """The steps of nested sequences, in order."""
    if step is None:
        return []
    return [each for part in step[inner] for each in flat(part, inner)] if type_of(step) == "Sequence" else [step]


def type_of(step: Any) -> str | None:
    """The type of a step, or None."""
    return None if step is None else step["type"]


def unknown(field: str, value: Any) -> ConfigError:
    """The error for a field with an unsupported value."""
    shown = regex.sub(r'("(?:[^"\\]|\\.){30})(?:[^"\\]|\\.)+"', r'\1..."', json.dumps(value))  # shortens long patterns
    return ConfigError(f"{field} is {shown if len(shown) < 400 else shown[:400] + '...'}; tinylm does not support this")
