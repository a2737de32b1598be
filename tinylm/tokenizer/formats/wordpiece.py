"""The WordPiece model of a Hugging Face tokenizer.json."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.fast.chunks import STEPS
from tinylm.tokenizer.formats.steps import flat, read_added, spelling, type_of, unknown
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer
from tinylm.tokenizer.normalizers.sequence import Rewriting, step_of
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.wordpiece import LONGEST, MARK, UNKNOWN_PIECE, WordPieceTokenizer

PRE_TOKENIZERS = {"bert": "BertPreTokenizer", "whitespace": "Whitespace", "spaces": "WhitespaceSplit"}
FIELDS = {"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"}

# --- writing


def wordpiece_steps(tokenizer: WordPieceTokenizer) -> dict[str, Any]:
    """The steps of a tokenizer.json. The vocabulary includes the special tokens."""
    names = [*tokenizer.pieces, *(name for name in tokenizer.special_tokens if name not in {*tokenizer.pieces})]
    options = tokenizer.options()
    model = {
        "type": "WordPiece",
        "unk_token": options["unknown"],
        "continuing_subword_prefix": tokenizer.mark,
        "max_input_chars_per_word": tokenizer.longest,
        "vocab": {name: token for token, name in enumerate(names)},
    }
    if tokenizer.pattern in PRE_TOKENIZERS:
        pre_tokenizer = {"type": PRE_TOKENIZERS[tokenizer.pattern]}
        decoder = {"type": "WordPiece", "prefix": tokenizer.mark, "cleanup": tokenizer.cleanup}
    else:
        pre_tokenizer = _whole_words(tokenizer.pattern, tokenizer.mark, tokenizer.longest)
        decoder = _joined(tokenizer.mark)
    normalizer = _normalizer(tokenizer.normalizer)
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}


def _normalizer(normalizer: Normalizer | None) -> dict[str, Any] | None:
    if normalizer is None:
        return None
    options = normalizer.options()
    if isinstance(normalizer, Rewriting):
        steps = normalizer.steps
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}
    if options == LOWERCASE:
        return {"type": "Lowercase"}
    return {"type": "BertNormalizer", **options}


LOWERCASE = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": True}


def _whole_words(pattern: str, mark: str, longest: int) -> dict[str, Any]:
    """The pre_tokenizer of `WholeWords`, which cuts the words of a pattern so that every word can be spelled."""
    first = regex.escape(mark[0])
    parts = (spelling(pattern), f"{first}|[^{first}]{{1,{longest}}}")
    splits = [{"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False} for part in parts]
    return {"type": "Sequence", "pretokenizers": splits}


def _joined(mark: str) -> dict[str, Any]:
    """The decoder that removes the marks and joins the pieces."""
    marks = {"type": "Replace", "pattern": {"Regex": f"^{regex.escape(mark)}"}, "content": ""}
    return {"type": "Sequence", "decoders": [marks, {"type": "Fuse"}]}


# --- reading


def from_wordpiece(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json with a WordPiece model, without its post_processor.

    Raises:
        ConfigError: for an unsupported field that would change ids, with its name.
    """
    model = values["model"]
    for name, value in model.items():
        if name not in FIELDS:
            raise unknown(f"model.{name}", value)
    mark, longest = model.get("continuing_subword_prefix", MARK), model.get("max_input_chars_per_word", LONGEST)
    vocab = model["vocab"]
    if sorted(vocab.values()) != [*range(len(vocab))]:
        raise ConfigError(f"model.vocab: ids must be 0 to {len(vocab) - 1}, each once")
    added = read_added(values.get("added_tokens") or [], vocab)
    core = {
        "pieces": _without_special(sorted(vocab, key=vocab.__getitem__), added),
        "normalizer": _read_normalizer(values.get("normalizer")),
        "unknown": model.get("unk_token", UNKNOWN_PIECE),
        "mark": mark,
        "longest": longest,
        **_read_words(values, mark, longest),
    }
    plain = [AddedToken(token.content, token.id) for token in added]
    numbers = [token.id for token in added if token.id >= len(vocab)]
    if added != plain or numbers != [*range(len(vocab), len(vocab) + len(numbers))]:
        if not _may_repeat(core["normalizer"]):
            raise unknown("normalizer, with added tokens that are found in every text,", values.get("normalizer"))
        core = {"kind": WordPieceTokenizer.kind, **core}
        return PipelineTokenizer(core, [asdict(token) for token in added], strip=core["pattern"] in PRE_TOKENIZERS)
    return WordPieceTokenizer(**core, special_tokens=[token.content for token in added])


def _without_special(pieces: list[str], added: list[AddedToken]) -> list[str]:
    """The pieces without the added tokens at their end, whose ids follow the pieces anyway."""
    names = [token.content for token in added]
    while pieces and names and pieces[-1] == names[-1]:
        pieces, names = pieces[:-1], names[:-1]
    return pieces


def _read_normalizer(normalizer: Any) -> dict[str, Any] | None:
    if type_of(normalizer) == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    match normalizer:
        case None:
            return None
        case {"type": "Lowercase"}:
            return BertNormalizer(**LOWERCASE).to_dict()
        case {"type": "BertNormalizer", **options} if options.keys() <= LOWERCASE.keys() and all(
            value in (True, False) or (value is None and name == "strip_accents") for name, value in options.items()
        ):
            return BertNormalizer(**options).to_dict()
    steps = flat(normalizer, "normalizers")
    if any(step_of(step) is None or step["type"] not in STEPS for step in steps):
        raise unknown("normalizer", normalizer)
    return Rewriting(steps).to_dict()


def _may_repeat(normalizer: dict[str, Any] | None) -> bool:
    """Whether a normalizer is idempotent, as a pipeline needs: pipeline and core both apply it."""
    types = [step["type"] for step in (normalizer or {}).get("steps", ())]
    forms = [place for place, name in enumerate(types) if name in ("NFD", "NFKD")]
    return not {"Lowercase", "StripAccents"} & {*types[: max(forms, default=0)]}


def _read_words(values: Mapping[str, Any], mark: str, longest: int) -> dict[str, Any]:
    """The options `pattern` and `cleanup`, from the pre_tokenizer and the decoder."""
    pre_tokenizer, decoder = values.get("pre_tokenizer"), values.get("decoder")
    for pattern, name in PRE_TOKENIZERS.items():
        if pre_tokenizer == {"type": name}:
            match decoder:
                case None:
                    return {"pattern": pattern}
                case {"type": "WordPiece", "prefix": prefix, "cleanup": bool(cleanup)} if prefix == mark:
                    return {"pattern": pattern, "cleanup": cleanup}
            raise unknown("decoder", decoder)
    match pre_tokenizer:
        case {"pretokenizers": [{"pattern": {"Regex": str(expression)}}, _]}:
            pattern = next((name for name in ("gpt2", "gpt4", "words") if spelling(name) == expression), expression)
            if pre_tokenizer != _whole_words(pattern, mark, longest):
                raise unknown("pre_tokenizer", pre_tokenizer)
            if decoder != _joined(mark):
                raise unknown("decoder", decoder)
            return {"pattern": pattern}
    raise unknown("pre_tokenizer", pre_tokenizer)
