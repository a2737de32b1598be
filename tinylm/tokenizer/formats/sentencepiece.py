"""SentencePiece's `.model` files: a Protocol Buffers message with pieces, scores and normalization.

    pieces              "▁the", -3.2, normal     "<s>", 0, control     "<0x0A>", 0, byte
    trainer_spec        model_type, byte_fallback, eos_id ...
    normalizer_spec     precompiled_charsmap, add_dummy_prefix, remove_extra_whitespaces ...

A model of type unigram becomes a UnigramTokenizer; a model of type bpe or char becomes a PipelineTokenizer with a
`CharacterBPE`. Pieces of type control and unknown become special tokens, which SentencePiece never finds in a text;
user-defined symbols are found in every text. Fields that only training reads are kept in `Tokenizer.origin`.

Not supported: the model type word, and denormalizers.
"""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.files import file_size
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.bpe import MAX_BYTES
from tinylm.tokenizer.characters import UNKNOWN, CharacterBPE
from tinylm.tokenizer.formats.merges import reading, require
from tinylm.tokenizer.formats.protobuf import (
    BYTES,
    Field,
    integer,
    last,
    message,
    number32,
    read_message,
    text,
    write_message,
)
from tinylm.tokenizer.formats.sentencepiece_model import (
    ORIGIN,
    ModelField,
    ModelType,
    Piece,
    PieceField,
    PieceType,
    SpecField,
    TrainerField,
    check_pieces,
    plain_normalizer,
)
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.unigram import UnigramTokenizer

SYMBOL_SCORE = 0.1  # score of a user-defined symbol per byte after the first


def is_sentencepiece(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a SentencePiece model: a piece that begins with its name."""
    return head[:1] == b"\n" and head[2:3] == b"\n"


def read_sentencepiece(path: str | Path) -> Tokenizer:
    """Reads a SentencePiece model of type unigram, bpe or char.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if the model is damaged, or of a type that tinylm does not read.
    """
    path = require(path)
    if file_size(path) > MAX_BYTES:
        raise DataError(f"{path}: is not a SentencePiece model: it has more than {MAX_BYTES:,} bytes")
    with reading(path, "a SentencePiece model"):
        return from_sentencepiece(path.read_bytes())


def from_sentencepiece(data: bytes) -> Tokenizer:
    """The tokenizer of a model file with these bytes.

    Raises:
        ConfigError: if the model is damaged, or of a type that tinylm does not read.
    """
    model = read_message(data, "model")
    if missing := {ModelField.TRAINER, ModelField.NORMALIZER} - {field.number for field in model}:
        raise ConfigError(f"is cut or damaged, it lacks {ModelField(min(missing)).name.lower()}_spec")
    trainer = message(model, ModelField.TRAINER, "trainer_spec")
    spec = message(model, ModelField.NORMALIZER, "normalizer_spec")
    if last(message(model, ModelField.DENORMALIZER, "denormalizer_spec"), SpecField.CHARSMAP, BYTES):
        raise ConfigError("denormalizer_spec: has a charsmap; tinylm does not change decoded text")
    found = [field for field in model if field.number == ModelField.PIECES]
    pieces = [_read_piece(field, token) for token, field in enumerate(found)]
    check_pieces(pieces, bool(integer(trainer, TrainerField.BYTE_FALLBACK)))
    symbols = [piece.name for piece in pieces if piece.type == PieceType.USER_DEFINED]
    normalizer = _read_normalizer(spec, trainer, symbols)
    kind = integer(trainer, TrainerField.MODEL_TYPE, ModelType.UNIGRAM)
    if kind == ModelType.UNIGRAM:
        tokenizer = _unigram(pieces, normalizer, trainer)
    elif kind in (ModelType.BPE, ModelType.CHAR):
        if kind == ModelType.CHAR and (
            more := [each.name for each in pieces if each.type == PieceType.NORMAL and len(each.name) > 1]
        ):
            raise ConfigError(f"piece {more[0][:40]!r} has several characters, in a model of type char")
        tokenizer = _characters(pieces, normalizer, trainer)
    else:
        what = "word, which has no pieces for parts of words" if kind == ModelType.WORD else str(kind)
        raise ConfigError(f"trainer_spec: model_type is {what}; tinylm reads unigram, bpe and char")
    return _marked(tokenizer, pieces, trainer).with_origin({ORIGIN: _origin(model)})


def _read_piece(field: Field, token: int) -> Piece:
    name = f"piece {token}"
    if field.type != BYTES:
        raise ConfigError(f"{name}: is damaged, a field of type {field.type}")
    fields = read_message(bytes(field.value), name)
    score, kind = number32(fields, PieceField.SCORE), integer(fields, PieceField.TYPE, PieceType.NORMAL)
    return Piece(text(fields, PieceField.PIECE), score, kind)


def _read_normalizer(spec: list[Field], trainer: list[Field], symbols: list[str]) -> SentencePieceNormalizer:
    charsmap = last(spec, SpecField.CHARSMAP, BYTES)
    return SentencePieceNormalizer(
        charsmap=base64.b64encode(charsmap).decode("ascii") if isinstance(charsmap, bytes) else "",
        add_dummy_prefix=bool(integer(spec, SpecField.DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(integer(spec, SpecField.REMOVE_EXTRA, 1)),
        escape_whitespaces=bool(integer(spec, SpecField.ESCAPE, 1)),
        treat_whitespace_as_suffix=bool(integer(trainer, TrainerField.SUFFIX)),
        symbols=symbols,
    )


def _ids(pieces: Sequence[Piece], *types: PieceType) -> list[int]:
    """The ids of the pieces of the given types."""
    return [token for token, piece in enumerate(pieces) if piece.type in types]


def _characters(
    pieces: Sequence[Piece], normalizer: SentencePieceNormalizer, trainer: list[Field]
) -> PipelineTokenizer:
    if not normalizer.escape_whitespaces:
        raise ConfigError("normalizer_spec: escape_whitespaces is false; tinylm reads BPE with spaces written ▁")
    vocab = {pieces[token].name: token for token in _ids(pieces, PieceType.NORMAL, PieceType.UNUSED, PieceType.BYTE)}
    core: dict[str, Any] = {"kind": CharacterBPE.kind, "vocab": vocab, "unused": _ids(pieces, PieceType.UNUSED)}
    core["scores"] = [pieces[token].score for token in vocab.values()]
    if not integer(trainer, TrainerField.BYTE_FALLBACK):
        [core["unknown"]] = _ids(pieces, PieceType.UNKNOWN)
        core["surface"] = text(trainer, TrainerField.UNK_SURFACE, UNKNOWN)
    added = [
        AddedToken(pieces[token].name, token, special=not symbol, normalized=symbol)
        for token in _ids(pieces, PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
        for symbol in [pieces[token].type == PieceType.USER_DEFINED]
    ]
    options: dict[str, Any] = {"spaces": "normalizer", "strip": normalizer.strips}
    if normalizer.to_dict() == plain_normalizer(normalizer.add_dummy_prefix).to_dict():
        options["prefix"] = "always" if normalizer.add_dummy_prefix else "none"
    else:
        options["normalization"] = normalizer.to_dict()
    return PipelineTokenizer(core, [asdict(token) for token in added], **options)


def _unigram(pieces: Sequence[Piece], normalizer: SentencePieceNormalizer, trainer: list[Field]) -> UnigramTokenizer:
    """A UnigramTokenizer. User-defined symbols get scores of at least 0, so that other pieces never win."""
    byte_fallback = bool(integer(trainer, TrainerField.BYTE_FALLBACK))
    scores: list[float | None] = []
    for piece in pieces:
        preferred = None
        if piece.type == PieceType.USER_DEFINED:
            preferred = float(np.float32(SYMBOL_SCORE * (len(piece.name.encode()) - 1)))
        scores.append(piece.score if piece.type == PieceType.NORMAL else preferred)
    [unknown] = _ids(pieces, PieceType.UNKNOWN)
    return UnigramTokenizer(
        [piece.name for piece in pieces],
        scores,
        unknown=None if byte_fallback else unknown,
        surface=None if byte_fallback else text(trainer, TrainerField.UNK_SURFACE, UNKNOWN),
        byte_fallback=byte_fallback,
        marker=normalizer.escape_whitespaces,
        normalizer=normalizer.to_dict(),
        sums="text",
        strip=normalizer.strips,
        special_tokens=[pieces[token].name for token in _ids(pieces, PieceType.UNKNOWN, PieceType.CONTROL)],
    )


def _marked(tokenizer: Tokenizer, pieces: Sequence[Piece], trainer: list[Field]) -> Tokenizer:
    """The tokenizer with the model's end of text as its end mark, if that is a control piece."""
    end = integer(trainer, TrainerField.EOS_ID, 2)
    if not 0 <= end < len(pieces) or pieces[end].type != PieceType.CONTROL or tokenizer.marks.end == end:
        return tokenizer
    return tokenizer.with_marks(end, end, [end])


def _origin(model: list[Field]) -> str:
    """The model without its pieces and charsmap, in base64."""
    others = []
    for field in model:
        if field.number == ModelField.NORMALIZER:
            inner = read_message(bytes(field.value), "normalizer_spec")
            kept = [each for each in inner if each.number != SpecField.CHARSMAP or not each.value]
            others.append(field._replace(value=write_message(kept)))
        elif field.number != ModelField.PIECES:
            others.append(field)
    return base64.b64encode(write_message(others)).decode("ascii")
