"""The unigram model of a Hugging Face tokenizer.json, as of T5, XLM-R, ALBERT or mBART.

    normalizer > pre_tokenizer (Metaspace: spaces become ▁) > model: [[piece, log probability], ...]

`tokenizers` finds the names of all pieces in a text: the text `<0x0A>` may become the byte of a line end, and tinylm
reads such files the same way. Models of tinylm are written with log probabilities so low that no text gives the name of
a byte, if each character of the names is a piece; otherwise a notice names a text that `tokenizers` reads differently.
`tokenizers` also finds the name of a special token that normalization makes, such as `<UNK>` in lower case; tinylm does
not.

Not supported: pre_tokenizers other than Metaspace, alone or after WhitespaceSplit; patterns other than spaces.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tinylm.errors import ConfigError, notice
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.characters import BYTE_NAMES
from tinylm.tokenizer.formats.converted import converted
from tinylm.tokenizer.formats.steps import MARK, flat, read_added, read_metaspace, type_of, unknown, without_idle_split
from tinylm.tokenizer.normalizers.metaspace import Spacing
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.normalizers.sequence import step_of
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.segmentation import Pieces
from tinylm.tokenizer.unigram import UNKNOWN_PENALTY, UnigramTokenizer

FIELDS = {"type", "unk_id", "vocab", "byte_fallback"}
UNMARK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
PREFIXES = {"each": "always", "first": "first", "none": "never"}  # result of read_metaspace -> prefix of Spacing
FAR = 10  # times the smallest score is the score of a byte: less than the sum of the six characters of its name

# --- reading


def read_unigram(values: dict[str, Any]) -> UnigramTokenizer | PipelineTokenizer:
    """The tokenizer of a tokenizer.json whose model is a unigram model.

    Raises:
        ConfigError: for an unsupported field that would change ids, with its name.
    """
    model = values["model"]
    if more := model.keys() - FIELDS:
        raise unknown(f"model.{min(more)}", model[min(more)])
    pieces = [piece for piece, _ in model["vocab"]]
    scores: list[float | None] = [float(score) for _, score in model["vocab"]]
    fallback, unk = model.get("byte_fallback", False), model.get("unk_id")
    if unk is not None and not (type(unk) is int and 0 <= unk < len(pieces)):
        raise unknown("model.unk_id", unk)
    options: dict[str, Any] = _read_steps(values) | {"pieces": pieces, "byte_fallback": fallback}
    options["strip"] = _read_decoder(values.get("decoder"), options["marker"], fallback)
    options["unknown"] = None if fallback and unk is not None and pieces[unk] in BYTE_NAMES else unk
    special, added = _read_added(values, pieces)
    names = [*BYTE_NAMES] if fallback else [] if unk is None or pieces[unk] in special else [pieces[unk]]
    options["scores"] = _without_names(pieces, scores, names, {*special})
    if added is None:
        tokenizer = UnigramTokenizer(**options, special_tokens=special)
    else:
        tokenizer = UnigramTokenizer(**options, special_tokens=[name for name in special if name in {*pieces}])
    given = min((float(score) for _, score in model["vocab"]), default=0.0) - UNKNOWN_PENALTY
    if given != tokenizer.model.pieces.unknown_score and not tokenizer.model.closed:
        options = tokenizer.options()
        options["unknown_score"] = given
        tokenizer = UnigramTokenizer(**options)
    if added is None:
        return tokenizer
    core = {"kind": tokenizer.kind, **tokenizer.options()}
    return PipelineTokenizer(core, [asdict(token) for token in added], strip=tokenizer.strip)


def _read_steps(values: dict[str, Any]) -> dict[str, Any]:
    """The options of UnigramTokenizer for a normalizer and a pre_tokenizer."""
    steps = flat(values.get("normalizer"), "normalizers")
    if any(step_of(step) is None for step in steps):
        raise unknown("normalizer", next(step for step in steps if step_of(step) is None))
    normalizer = {"kind": "rewriting", "steps": steps} if steps else None
    before = flat(without_idle_split(values.get("pre_tokenizer"), values.get("normalizer")), "pretokenizers")
    words = before[:1] == [{"type": "WhitespaceSplit"}]
    if len(before) - words > 1 or (words and len(before) < 2):
        raise unknown("pre_tokenizer", values["pre_tokenizer"])
    metaspace = read_metaspace(before[-1] if before else None)
    if words and metaspace != ("each", True):
        raise unknown("pre_tokenizer", values["pre_tokenizer"])
    if metaspace is None:
        marked = MARK in steps
        behind = steps[steps.index(MARK) + 1 :] if marked else []
        if any(type_of(step) not in ("Prepend", "Replace") for step in behind):
            raise unknown("normalizer", values["normalizer"])
        return {"normalizer": normalizer, "marker": marked, "split": "pieces"}
    prefix, split = metaspace
    spacing = Spacing(words, PREFIXES[prefix]).to_dict()
    return {"normalizer": normalizer, "spacing": spacing, "marker": True, "split": "spaces" if split else "pieces"}


def _read_decoder(decoder: Any, marker: bool, fallback: bool) -> bool:
    """Whether decoding drops the first space."""
    match decoder:
        case {"type": "Metaspace"} if marker and not fallback:
            found = read_metaspace(decoder)
            return found is not None and found[0] != "none"
    steps = [step for step in flat(decoder, "decoders") if step != {"type": "Fuse"}]
    expected = [UNMARK] * marker + [{"type": "ByteFallback"}] * fallback
    if decoder is None or steps not in (expected, [*expected, FIRST_SPACE]):
        raise unknown("decoder", decoder)
    return steps != expected


def _read_added(values: dict[str, Any], pieces: Sequence[str]) -> tuple[list[str], list[AddedToken] | None]:
    """The names of special tokens, and all added tokens if a PipelineTokenizer is needed to find them, else None."""
    numbers = {piece: token for token, piece in enumerate(pieces)}
    added = read_added(values.get("added_tokens") or [], numbers)
    plain = [AddedToken(token.content, token.id) for token in added]
    following = [token.id for token in added if token.content not in numbers]
    if added == plain and following == [*range(len(pieces), len(pieces) + len(following))]:
        return [token.content for token in added], None
    return [token.content for token in added if token.special], added


def _without_names(
    pieces: Sequence[str], scores: Sequence[float | None], names: Sequence[str], special: set[str]
) -> list[float | None]:
    """The scores, with None for the names that no text can give.

    Such a name is more likely to be spelled by other pieces, or has the score that tinylm writes for bytes.
    """
    others = {
        piece: score
        for piece, score in zip(pieces, scores, strict=True)
        if score is not None and piece not in special and piece not in names
    }
    finder, found, numbers = Pieces(others, 0.0), list(scores), {piece: token for token, piece in enumerate(pieces)}
    written = FAR * min(others.values(), default=0.0)
    for name in names:
        path = [name[begin:end] for begin, end in finder.best_path(name)]
        spelled = math.fsum(others[each] for each in path) if others.keys() >= {*path} else -math.inf
        score = scores[numbers[name]] if name in numbers else None
        if score is not None and (score < spelled or score == written):
            found[numbers[name]] = None
    return found


# --- writing


def unigram_steps(tokenizer: UnigramTokenizer) -> dict[str, Any]:
    """The fields of a tokenizer.json for this tokenizer, without added tokens.

    Raises:
        ConfigError: if Hugging Face lacks the normalizer or would use another unknown_score. If only some texts get
            other ids, as with SentencePiece's normalization, a notice counts them (converted.py).
    """
    if isinstance(tokenizer.normalizer, SentencePieceNormalizer):
        tokenizer = converted(tokenizer)
    steps = _write_normalizer(tokenizer)
    found = tokenizer.model.pieces
    least = min(found.scores.values(), default=0.0)
    vocab = [
        [piece, FAR * least if score is None else score]
        for piece, score in zip(tokenizer.pieces, tokenizer.scores, strict=True)
    ]
    theirs = min((score for _, score in vocab), default=0.0) - UNKNOWN_PENALTY
    if theirs != found.unknown_score and not tokenizer.model.closed:
        raise ConfigError(
            f"unknown_score is {found.unknown_score}, but Hugging Face takes {theirs}, 10 below the smallest score"
        )
    _tell_of_names(tokenizer)
    unk = tokenizer.pieces.index(BYTE_NAMES[0]) if tokenizer.unknown is None else tokenizer.unknown
    model = {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": tokenizer.byte_fallback}
    return {**steps, "decoder": _write_decoder(tokenizer), "model": model}


def _tell_of_names(tokenizer: UnigramTokenizer) -> None:
    """Prints a notice if `tokenizers` would read the name of a byte as the byte, since a character is not a piece."""
    spelling = {*"".join(BYTE_NAMES)} if tokenizer.byte_fallback else set()
    if missing := sorted(spelling - tokenizer.model.pieces.scores.keys()):
        name = next(name for name in BYTE_NAMES if missing[0] in name)
        notice(
            f"tokenizer.json: {missing[0]!r} is not a piece, so tokenizers will read the text {name} as a byte; "
            "tinylm reads it as text"
        )


def _write_normalizer(tokenizer: UnigramTokenizer) -> dict[str, Any]:
    """The normalizer and the pre_tokenizer."""
    normalizer, spacing = tokenizer.normalizer and tokenizer.normalizer.to_dict(), tokenizer.spacing
    if normalizer and normalizer["kind"] != "rewriting":
        raise ConfigError(f"normalizer: {normalizer['kind']} has no counterpart in tokenizer.json")
    steps = normalizer["steps"] if normalizer else []
    written = {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else (steps or [None])[0]
    if not isinstance(spacing, Spacing):
        return {"normalizer": written, "pre_tokenizer": None}
    level = _metaspace(tokenizer, spacing)
    if spacing.words:
        level = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, level]}
    return {"normalizer": written, "pre_tokenizer": level}


def _metaspace(tokenizer: UnigramTokenizer, spacing: Spacing) -> dict[str, Any]:
    split = tokenizer.split == "spaces"
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": spacing.prefix, "split": split}


def _write_decoder(tokenizer: UnigramTokenizer) -> dict[str, Any]:
    if isinstance(tokenizer.spacing, Spacing) and not tokenizer.byte_fallback:
        strips = tokenizer.spacing.prefix != "never"
        if strips == tokenizer.strip:
            return _metaspace(tokenizer, tokenizer.spacing)
    steps = [UNMARK] * tokenizer.marker + [{"type": "ByteFallback"}] * tokenizer.byte_fallback + [{"type": "Fuse"}]
    return {"type": "Sequence", "decoders": steps + [FIRST_SPACE] * tokenizer.strip}
