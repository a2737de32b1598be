"""WordPiece in other tools' files: the model of a tokenizer.json, and BERT's vocab.txt.

A vocab.txt has one piece a line, whose number is its id. tokenizer_config.json beside it says how text is normalized;
without it the vocabulary does: one without capital letters is of an uncased model.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import regex

from tinylm.errors import ConfigError, notice
from tinylm.files import write_json, write_text
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.fast.chunks import STEPS
from tinylm.tokenizer.formats.merges import reading
from tinylm.tokenizer.formats.steps import FLAGS, flat, read_added, spelling, type_of, unknown
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer
from tinylm.tokenizer.normalizers.sequence import Rewriting, step_of
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.wordpiece import LONGEST, MARK, UNKNOWN_PIECE, WordPieceTokenizer

VOCABULARY, SETTINGS = "vocab.txt", "tokenizer_config.json"
BERTS_NAMES = {"pad": "[PAD]", "unk": UNKNOWN_PIECE, "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
PRE_TOKENIZERS = {"bert": "BertPreTokenizer", "whitespace": "Whitespace", "spaces": "WhitespaceSplit"}
FIELDS = {"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"}

# --- tokenizer.json: writing


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
    """The words of a pattern, cut so that every one can be spelled, as in `WholeWords`."""
    first = regex.escape(mark[0])
    parts = (spelling(pattern), f"{first}|[^{first}]{{1,{longest}}}")
    splits = [{"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False} for part in parts]
    return {"type": "Sequence", "pretokenizers": splits}


def _joined(mark: str) -> dict[str, Any]:
    """The decoder that removes the marks, and puts nothing between pieces."""
    marks = {"type": "Replace", "pattern": {"Regex": f"^{regex.escape(mark)}"}, "content": ""}
    return {"type": "Sequence", "decoders": [marks, {"type": "Fuse"}]}


# --- tokenizer.json: reading


def from_wordpiece(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json with a WordPiece model, without its post_processor.

    Raises:
        ConfigError: for a field that would change ids and is not supported, with its name.
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
    """The pieces without the added tokens at their end, which are numbered behind them anyway."""
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
    """Whether a normalizer leaves normalized text as it is: a pipeline applies it before the core applies it again."""
    types = [step["type"] for step in (normalizer or {}).get("steps", ())]
    forms = [place for place, name in enumerate(types) if name in ("NFD", "NFKD")]
    return not {"Lowercase", "StripAccents"} & {*types[: max(forms, default=0)]}


def _read_words(values: Mapping[str, Any], mark: str, longest: int) -> dict[str, Any]:
    """The pattern and `cleanup`, by the pre_tokenizer and the decoder."""
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


# --- vocab.txt

BERTS_SETTINGS = {"do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize", "never_split"}


def is_vocab_txt(path: Path) -> bool:
    """Whether a file is a WordPiece vocabulary, by its name or its beginning."""
    with path.open("rb") as file:
        return path.name == VOCABULARY or b"\n[UNK]\n" in file.read(1 << 16)


def has_vocab_txt(folder: Path) -> bool:
    """Whether a folder has a vocab.txt."""
    return (folder / VOCABULARY).is_file()


def vocab_txt_values(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a vocab.txt and its settings, as transformers' BertTokenizer has it.

    Args:
        path: the vocab.txt
        settings: the content of tokenizer_config.json, or empty

    Raises:
        DataError: if it is damaged, or a setting is not supported.
    """
    with reading(path, "a WordPiece vocabulary"):
        pieces = _read_lines(path)
    with reading(path.parent / SETTINGS, "a tokenizer_config.json"):
        if not settings.get("do_basic_tokenize", True) or settings.get("never_split"):
            raise ConfigError("do_basic_tokenize=false and never_split are not supported; save a tokenizer.json")
        names = {field: settings.get(f"{field}_token") or name for field, name in BERTS_NAMES.items()}
        names = {field: name["content"] if isinstance(name, dict) else name for field, name in names.items()}
        found = {name: token for token, name in enumerate(pieces) if name in names.values()}
        normalizer = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings["do_lower_case"] if "do_lower_case" in settings else _is_uncased(path, pieces, found),
        }
    model = {
        "type": "WordPiece",
        "unk_token": names["unk"],
        "continuing_subword_prefix": MARK,
        "max_input_chars_per_word": LONGEST,
        "vocab": {piece: token for token, piece in enumerate(pieces)},
    }
    added = [
        {"id": token, "content": name, **dict.fromkeys(FLAGS, False), "special": True} for name, token in found.items()
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": PRE_TOKENIZERS["bert"]},
        "post_processor": _berts_template(names["cls"], names["sep"], found),
        "decoder": {"type": "WordPiece", "prefix": MARK, "cleanup": True},
        "model": model,
    }


def _read_lines(path: Path) -> list[str]:
    """The pieces, in the order of their ids."""
    pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, piece in enumerate(pieces, start=1):
        if not piece or piece != piece.strip():
            raise ConfigError(f"line {number} must be a piece without white space around it, got {piece[:40]!a}")
    return pieces


def _is_uncased(path: Path, pieces: list[str], special: Mapping[str, int]) -> bool:
    words = [piece for piece in pieces if piece not in special and not piece.startswith("[")]  # not [unused0]
    uncased = not any(map(str.isupper, "".join(words)))
    kind = "uncased, since no piece has" if uncased else "cased, since pieces have"
    notice(f"{path}: there is no do_lower_case in {SETTINGS}; assuming {kind} capital letters")
    return uncased


def _berts_template(first: str, last: str, found: Mapping[str, int]) -> dict[str, Any] | None:
    """The post_processor that puts `[CLS]` before a text and `[SEP]` behind it; None without these tokens."""
    if first not in found or last not in found:
        return None
    begin, end, second = (
        {"SpecialToken": {"id": name, "type_id": kind}} for name, kind in ((first, 0), (last, 0), (last, 1))
    )
    text, other = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    tokens = {name: {"id": name, "ids": [found[name]], "tokens": [name]} for name in (first, last)}
    single = [begin, text, end]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, other, second],
        "special_tokens": tokens,
    }


def check_settings(settings: Mapping[str, Any], normalizer: Any) -> None:
    """Refuses settings of BERT that a tokenizer.json does not follow.

    Raises:
        ConfigError: with the setting.
    """
    normalizer = normalizer or {}
    fields = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
    for name, field in (fields | {"strip_accents": "strip_accents"}).items():
        if name in settings and settings[name] != normalizer.get(
            field, field == "lowercase" and "Lowercase" in str(normalizer)
        ):
            raise ConfigError(f"{name} is {str(settings[name]).lower()}, unlike tokenizer.json; make the two agree")


PIECES = FileKind("a WordPiece vocabulary", rb"(?:\S+\n){4}")
BERTS_CONFIG = FileKind("a tokenizer_config.json", rb'\{\s*"tokenizer_class": "BertTokenizer"')


def write_vocab_txt(tokenizer: Tokenizer, folder: str | Path, overwrite: bool = False) -> None:
    """Writes vocab.txt, and tokenizer_config.json with how text is normalized, for transformers' BertTokenizer.

    Raises:
        CannotCreateError: if a file exists and is not to be replaced, or is something else.
        ConfigError: unless the tokenizer is WordPiece with the pattern bert, and BERT's normalizer and names.
    """
    folder = Path(folder)
    check_target(folder / VOCABULARY, PIECES, overwrite)
    check_target(folder / SETTINGS, BERTS_CONFIG, overwrite)
    refuse_own_class(tokenizer, VOCABULARY)
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ConfigError(f"tokenizer: vocab.txt needs kind wordpiece, got {tokenizer.kind}; write tokenizer.json")
    steps = wordpiece_steps(tokenizer)
    normalizer, model = steps["normalizer"] or {}, steps["model"]
    names = list(model["vocab"])
    special = {*tokenizer.special_tokens} - {*BERTS_NAMES.values()}
    if (
        tokenizer.pattern != "bert"
        or not normalizer.get("clean_text")
        or (tokenizer.mark, tokenizer.longest) != (MARK, LONGEST)
    ):
        raise ConfigError("tokenizer: vocab.txt needs the pattern bert, clean_text, ## and 100; write tokenizer.json")
    if special or any(name.split() != [name] for name in names):
        raise ConfigError("tokenizer: vocab.txt has only pieces without spaces and BERT's tokens; write tokenizer.json")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }
    settings |= {f"{field}_token": name for field, name in BERTS_NAMES.items() if name in model["vocab"]}
    write_text(folder / VOCABULARY, "".join(f"{name}\n" for name in names))
    write_json(folder / SETTINGS, settings)
