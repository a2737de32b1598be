"""BERT's vocab.txt: one piece per line. The line number, from 0, is its id.

tokenizer_config.json in the same folder gives the normalization. Without it, a vocabulary without capital letters is
taken for uncased.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError, notice
from tinylm.files import write_json, write_text
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.formats.merges import reading
from tinylm.tokenizer.formats.steps import FLAGS
from tinylm.tokenizer.formats.wordpiece import PRE_TOKENIZERS, wordpiece_steps
from tinylm.tokenizer.wordpiece import LONGEST, MARK, UNKNOWN_PIECE, WordPieceTokenizer

VOCABULARY, SETTINGS = "vocab.txt", "tokenizer_config.json"
BERTS_NAMES = {"pad": "[PAD]", "unk": UNKNOWN_PIECE, "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BERTS_SETTINGS = {"do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize", "never_split"}


def is_vocab_txt(path: Path) -> bool:
    """Whether a file is a WordPiece vocabulary, judged by its name or beginning."""
    with path.open("rb") as file:
        return path.name == VOCABULARY or b"\n[UNK]\n" in file.read(1 << 16)


def has_vocab_txt(folder: Path) -> bool:
    """Whether a folder has a vocab.txt."""
    return (folder / VOCABULARY).is_file()


def vocab_txt_values(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json equivalent to a vocab.txt and its settings in transformers' BertTokenizer.

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
    """The post_processor that puts `[CLS]` before a text and `[SEP]` after it; None without these tokens."""
    if first not in found or last not in found:
        return None
    begin, end, second = (
        {"SpecialToken": {"id": name, "type_id": kind}} for name, kind in ((first, 0), (last, 0), (last, 1))
    )
    text, other = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    tokens = {name: {"id": name, "ids": [found[name]], "tokens": [name]} for name in (first, last)}
    single = [begin, text, end]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, other, second], "special_tokens": tokens}


def check_settings(settings: Mapping[str, Any], normalizer: Any) -> None:
    """Refuses BERT settings that contradict a tokenizer.json.

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
    """Writes vocab.txt, and tokenizer_config.json with the normalization, for transformers' BertTokenizer.

    Raises:
        CannotCreateError: if a file exists and `overwrite` is false, or it is not such a file.
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
