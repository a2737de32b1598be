"""SentencePiece's `.model` files: pieces with scores, and how text is normalized, in a message of Protocol Buffers.

    ModelProto       1 pieces (1 piece, 2 score, 3 type)   2 trainer_spec   3 normalizer_spec   5 denormalizer_spec
    trainer_spec     3 model_type   24 treat_whitespace_as_suffix   35 byte_fallback   40-42 unk_id, bos_id, eos_id ...
    normalizer_spec  2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces

A model of type unigram becomes a UnigramTokenizer; one of type bpe or char a PipelineTokenizer with a core of
characters. The pieces of type control and unknown become special tokens, which SentencePiece never finds in a text;
user-defined symbols are found in every text. What only training reads is kept in `Tokenizer.origin`: a model that was
read is written again byte for byte.

Not supported: the type word, and a denormalizer.
"""

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tinylm.errors import ConfigError, DataError
from tinylm.files import atomic_write, file_size
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.bpe import MAX_BYTES
from tinylm.tokenizer.characters import BYTE_NAMES, UNKNOWN, CharacterBPE
from tinylm.tokenizer.formats.merges import reading, require
from tinylm.tokenizer.formats.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    Field,
    integer,
    last,
    message,
    number32,
    read_message,
    text,
    write_message,
)
from tinylm.tokenizer.formats.scores import check_added, scores_of
from tinylm.tokenizer.normalize import Normalizer
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.spaces import SentencePieceNormalizer
from tinylm.tokenizer.unigram import UnigramTokenizer

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE, WORD, CHAR = range(1, 5)  # types of models
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5  # fields of a model
PIECE, SCORE, TYPE = 1, 2, 3  # of a piece
MODEL_TYPE, VOCAB_SIZE, AS_SUFFIX, BYTE_FALLBACK, SURFACE = 3, 4, 24, 35, 44  # of trainer_spec
UNK_ID, BOS_ID, EOS_ID, PAD_ID = 40, 41, 42, 43
UNK_PIECE, BOS_PIECE, EOS_PIECE = 45, 46, 47
CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA, ESCAPE = 2, 3, 4, 5  # of normalizer_spec
MODEL = FileKind("a SentencePiece model", rb"\n.\n")
ORIGIN = "tokenizer.model"  # the key of `Tokenizer.origin`
LONGEST = 512  # characters of a piece
SMALLEST = 1.1754943508222875e-38  # float32 that SentencePiece takes for the largest score if all are negative


class Piece(NamedTuple):
    """A piece of the vocabulary, whose id is its place.

    Attributes:
        name: the piece, with spaces written ▁
        score: log probability, or for BPE the priority of a merge
        type: NORMAL, UNKNOWN_TYPE, ...
    """

    name: str
    score: float
    type: int


# --- reading


def is_sentencepiece(head: bytes) -> bool:
    """Whether a file that begins so is a SentencePiece model: a piece, in which the name of the piece comes first."""
    return head[:1] == b"\n" and head[2:3] == b"\n"


def read_sentencepiece(path: str | Path) -> Tokenizer:
    """Reads a SentencePiece model of type unigram, bpe or char.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged, or of a type that tinylm does not read.
    """
    path = require(path)
    if file_size(path) > MAX_BYTES:
        raise DataError(f"{path}: is no SentencePiece model, which has at most {MAX_BYTES:,} bytes")
    with reading(path, "a SentencePiece model"):
        return from_sentencepiece(path.read_bytes())


def from_sentencepiece(data: bytes) -> Tokenizer:
    """The tokenizer of a model file with these bytes.

    Raises:
        ConfigError: if it is damaged, or of a type that tinylm does not read.
    """
    model = read_message(data, "model")
    pieces = [_read_piece(field, token) for token, field in enumerate(each for each in model if each.number == PIECES)]
    trainer, spec = message(model, TRAINER, "trainer_spec"), message(model, NORMALIZER, "normalizer_spec")
    if last(message(model, DENORMALIZER, "denormalizer_spec"), CHARSMAP, BYTES):
        raise ConfigError("denormalizer_spec: has a charsmap; tinylm does not change decoded text")
    _check_pieces(pieces, bool(integer(trainer, BYTE_FALLBACK)))
    normalizer = _read_normalizer(spec, trainer, [piece.name for piece in pieces if piece.type == USER_DEFINED])
    kind = integer(trainer, MODEL_TYPE, UNIGRAM)
    if kind == UNIGRAM:
        tokenizer = _unigram(pieces, normalizer, trainer)
    elif kind in (BPE, CHAR):
        tokenizer = _characters(pieces, normalizer, trainer, merges=kind == BPE)
    else:
        what = "word, which has no pieces for parts of words" if kind == WORD else f"{kind}"
        raise ConfigError(f"trainer_spec: model_type is {what}; tinylm reads unigram, bpe and char")
    return _marked(tokenizer, pieces, trainer).with_origin({ORIGIN: _origin(model)})


def _read_piece(field: Field, token: int) -> Piece:
    name = f"piece {token}"
    if field.type != BYTES:
        raise ConfigError(f"{name}: is damaged, a field of type {field.type}")
    fields = read_message(bytes(field.value), name)
    return Piece(text(fields, PIECE), number32(fields, SCORE), integer(fields, TYPE, NORMAL))


def _check_pieces(pieces: Sequence[Piece], byte_fallback: bool) -> None:
    """Checks what SentencePiece checks, and that all names differ."""
    types = [piece.type for piece in pieces]
    for token, piece in enumerate(pieces):
        if not 0 < len(piece.name) <= LONGEST or not math.isfinite(piece.score) or not NORMAL <= piece.type <= BYTE:
            shown = (piece.name[:40], piece.score, piece.type)
            raise ConfigError(f"piece {token}: needs a name, a finite score and a known type, got {shown}")
    if len({piece.name for piece in pieces}) < len(pieces):
        raise ConfigError("pieces must have distinct names")
    if types.count(UNKNOWN_TYPE) != 1:
        raise ConfigError(f"one piece must be that of unknown characters, got {types.count(UNKNOWN_TYPE)}")
    names = {piece.name for piece in pieces if piece.type == BYTE}
    if names != ({*BYTE_NAMES} if byte_fallback else set()):
        raise ConfigError(f"byte_fallback is {str(byte_fallback).lower()}, but {len(names)} pieces are bytes")


def _read_normalizer(spec: list[Field], trainer: list[Field], symbols: list[str]) -> SentencePieceNormalizer:
    charsmap = last(spec, CHARSMAP, BYTES)
    return SentencePieceNormalizer(
        charsmap=base64.b64encode(charsmap).decode("ascii") if isinstance(charsmap, bytes) else "",
        add_dummy_prefix=bool(integer(spec, DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(integer(spec, REMOVE_EXTRA, 1)),
        escape_whitespaces=bool(integer(spec, ESCAPE, 1)),
        treat_whitespace_as_suffix=bool(integer(trainer, AS_SUFFIX)),
        symbols=symbols,
    )


def _plain(prefix: bool) -> SentencePieceNormalizer:
    """The normalizer of a PipelineTokenizer that has none, but may put a space before a text."""
    return SentencePieceNormalizer(add_dummy_prefix=prefix, remove_extra_whitespaces=False)


def _characters(
    pieces: Sequence[Piece], normalizer: SentencePieceNormalizer, trainer: list[Field], merges: bool
) -> PipelineTokenizer:
    if not normalizer.escape_whitespaces:
        raise ConfigError("normalizer_spec: escape_whitespaces is false; tinylm reads BPE with spaces written ▁")
    vocab = {piece.name: token for token, piece in enumerate(pieces) if piece.type in (NORMAL, UNUSED, BYTE)}
    core: dict[str, Any] = {"kind": CharacterBPE.kind, "vocab": vocab}
    if merges:
        core["scores"] = [pieces[token].score for token in vocab.values()]
        core["unused"] = [token for token, piece in enumerate(pieces) if piece.type == UNUSED]
    if not integer(trainer, BYTE_FALLBACK):
        core["unknown"] = next(token for token, piece in enumerate(pieces) if piece.type == UNKNOWN_TYPE)
        core["surface"] = text(trainer, SURFACE, UNKNOWN)
    added = [
        AddedToken(piece.name, token, special=piece.type != USER_DEFINED, normalized=piece.type == USER_DEFINED)
        for token, piece in enumerate(pieces)
        if piece.type in (UNKNOWN_TYPE, CONTROL, USER_DEFINED)
    ]
    options: dict[str, Any] = {"spaces": "normalizer", "strip": normalizer.strips}
    if normalizer.to_dict() == _plain(normalizer.add_dummy_prefix).to_dict():
        options["prefix"] = "always" if normalizer.add_dummy_prefix else "none"
    else:
        options["normalization"] = normalizer.to_dict()
    return PipelineTokenizer(core, [asdict(token) for token in added], **options)


def _unigram(pieces: Sequence[Piece], normalizer: SentencePieceNormalizer, trainer: list[Field]) -> Tokenizer:
    """SentencePiece prefers user-defined symbols to other pieces by their score, which is higher than any other."""
    byte_fallback = bool(integer(trainer, BYTE_FALLBACK))
    largest = max((piece.score for piece in pieces if piece.type == NORMAL), default=0.0)
    scores: list[float | None] = []
    for piece in pieces:
        if piece.type == USER_DEFINED:
            scores.append(len(piece.name.encode()) * max(largest, SMALLEST) - 0.1)
        else:
            scores.append(piece.score if piece.type == NORMAL else None)
    unknown = next(token for token, piece in enumerate(pieces) if piece.type == UNKNOWN_TYPE)
    return UnigramTokenizer(
        [piece.name for piece in pieces],
        scores,
        unknown=None if byte_fallback else unknown,
        byte_fallback=byte_fallback,
        marker=normalizer.escape_whitespaces,
        normalizer=normalizer.to_dict(),
        strip=normalizer.strips,
        special_tokens=[piece.name for piece in pieces if piece.type in (UNKNOWN_TYPE, CONTROL)],
    )


def _marked(tokenizer: Tokenizer, pieces: Sequence[Piece], trainer: list[Field]) -> Tokenizer:
    """The tokenizer with the end of text that the model names, if it is a control piece."""
    end = integer(trainer, EOS_ID, 2)
    if not 0 <= end < len(pieces) or pieces[end].type != CONTROL or tokenizer.marks.end == end:
        return tokenizer
    return tokenizer.with_marks(end, end, [end])


def _origin(model: list[Field]) -> str:
    """All of a model but its pieces and its charsmap, in base64."""
    others = []
    for field in model:
        if field.number == NORMALIZER and isinstance(field.value, bytes):
            inner = [
                each
                for each in read_message(field.value, "normalizer_spec")
                if each[:1] != (CHARSMAP,) or not each.value
            ]
            others.append(field._replace(value=write_message(inner)))
        elif field.number != PIECES:
            others.append(field)
    return base64.b64encode(write_message(others)).decode("ascii")


# --- writing


class Model(NamedTuple):
    """What a model file says.

    Attributes:
        type: BPE or UNIGRAM
        pieces: in the order of their ids
        normalizer: how text is normalized
        byte_fallback: whether characters without a piece become bytes
        surface: what `<unk>` is decoded to
    """

    type: int
    pieces: list[Piece]
    normalizer: SentencePieceNormalizer
    byte_fallback: bool
    surface: str


def write_sentencepiece(tokenizer: Tokenizer, path: str | Path, overwrite: bool = False) -> None:
    """Writes a `.model` that SentencePiece reads.

    One that has bytes for unknown characters gets a piece `<unk>`, if it has none, behind all others.

    Raises:
        CannotCreateError: if the file exists and is not to be replaced, or is something else.
        ConfigError: if ids might differ there.
    """
    check_target(path, MODEL, overwrite)
    data = to_sentencepiece(tokenizer)
    with atomic_write(path) as file:
        file.write(data)


def to_sentencepiece(tokenizer: Tokenizer) -> bytes:
    """The content of a `.model`. Errors as in `write_sentencepiece`."""
    refuse_own_class(tokenizer, "a SentencePiece model")
    if isinstance(tokenizer, PipelineTokenizer) and isinstance(tokenizer.core, CharacterBPE):
        model = _model_of_characters(tokenizer, tokenizer.core)
    else:
        raise ConfigError(f"tokenizer: kind {tokenizer.kind} has no pieces with scores; write tokenizer.json")
    if not any(piece.type == UNKNOWN_TYPE for piece in model.pieces):
        model.pieces.append(Piece("<unk>", 0.0, UNKNOWN_TYPE))
    _check_pieces(model.pieces, model.byte_fallback)
    read = read_message(base64.b64decode(tokenizer.origin.get(ORIGIN, "")), "origin")
    fields = [field for field in read if field.number not in (TRAINER, NORMALIZER)]
    trainer = message(read, TRAINER, "trainer_spec") or _new_trainer(model, tokenizer.marks.end)
    kind = integer(trainer, MODEL_TYPE, UNIGRAM)
    if not (kind == CHAR and model.type == BPE and not any(piece.score for piece in model.pieces)):
        trainer = _with(trainer, MODEL_TYPE, model.type, UNIGRAM)
    trainer = _with(trainer, BYTE_FALLBACK, int(model.byte_fallback), 0)
    trainer = _with(trainer, AS_SUFFIX, int(model.normalizer.treat_whitespace_as_suffix), 0)
    spec = message(read, NORMALIZER, "normalizer_spec")
    for number, value in (
        (DUMMY_PREFIX, model.normalizer.add_dummy_prefix),
        (REMOVE_EXTRA, model.normalizer.remove_extra_whitespaces),
        (ESCAPE, model.normalizer.escape_whitespaces),
    ):
        spec = _with(spec, number, int(value), 1)
    if table := model.normalizer.table:
        spec = _inserted(spec, Field(CHARSMAP, BYTES, table))
    for number, inner in ((TRAINER, trainer), (NORMALIZER, spec)):
        fields = _inserted(fields, Field(number, BYTES, write_message(inner)))
    pieces = [Field(PIECES, BYTES, _write_piece(piece)) for piece in model.pieces]
    return write_message(pieces + fields)


def _write_piece(piece: Piece) -> bytes:
    name, score = piece.name.encode(), struct.pack("<f", piece.score)
    fields = [Field(PIECE, BYTES, name), Field(SCORE, FIXED32, score), Field(TYPE, VARINT, piece.type)]
    return write_message(fields[:2] if piece.type == NORMAL else fields)


def _new_trainer(model: Model, end: int | None) -> list[Field]:
    """The trainer_spec of a tokenizer that SentencePiece did not train: what its programs read of it."""
    unknown = next(token for token, piece in enumerate(model.pieces) if piece.type == UNKNOWN_TYPE)
    end = -1 if end is None or model.pieces[end].type != CONTROL else end
    fields: list[Field] = []
    numbers = {
        MODEL_TYPE: model.type,
        VOCAB_SIZE: len(model.pieces),
        UNK_ID: unknown,
        EOS_ID: end,
        BOS_ID: -1,
        PAD_ID: -1,
    }
    names = {SURFACE: model.surface, UNK_PIECE: model.pieces[unknown].name, EOS_PIECE: model.pieces[end].name}
    for number, value in numbers.items():
        fields = _inserted(fields, Field(number, VARINT, value & (1 << 64) - 1))
    for number, name in names.items() if end >= 0 else [*names.items()][:2]:
        fields = _inserted(fields, Field(number, BYTES, name.encode()))
    return fields


def _with(fields: list[Field], number: int, value: int, default: int) -> list[Field]:
    """The fields with this value of one of them."""
    if integer(fields, number, default) == value:
        return fields
    return _inserted([field for field in fields if field.number != number], Field(number, VARINT, value))


def _inserted(fields: list[Field], new: Field) -> list[Field]:
    """The fields with one more, behind those of smaller numbers."""
    place = next((place for place, field in enumerate(fields) if field.number > new.number), len(fields))
    return [*fields[:place], new, *fields[place:]]


def _model_of_characters(tokenizer: PipelineTokenizer, core: CharacterBPE) -> Model:
    """The model of a tokenizer with a core of characters."""
    if isinstance(tokenizer.normalization, dict) and tokenizer.prefix == "none":
        normalizer = Normalizer.from_dict(tokenizer.normalization)
    elif not tokenizer.normalization and tokenizer.prefix in ("none", "always") and tokenizer.spaces == "normalizer":
        normalizer = _plain(tokenizer.prefix == "always")
    else:
        normalizer = None
    if not isinstance(normalizer, SentencePieceNormalizer) or core.words or normalizer.strips != tokenizer.strip:
        raise ConfigError("tokenizer: its spaces are put or split otherwise than in SentencePiece")
    check_added(tokenizer, "SentencePiece")
    added = {token.id for token in tokenizer.added}
    pieces = {
        token: Piece(
            name,
            0.0,
            BYTE if name in BYTE_NAMES and core.unknown is None else UNUSED if token in core.unused else NORMAL,
        )
        for name, token in core.vocab.items()
    }
    for token, score in scores_of(core, added, "SentencePiece").items():
        pieces[token] = pieces[token]._replace(score=score)
    for token in tokenizer.added:
        pieces[token.id] = Piece(token.content, 0.0, _type_of(token, core, normalizer))
    if [*range(len(pieces))] != sorted(pieces):
        raise ConfigError("tokenizer: some ids have no token, as SentencePiece needs")
    ordered = [pieces[token] for token in range(len(pieces))]
    return Model(BPE, ordered, normalizer, core.unknown is None, core.surface)


def _type_of(token: AddedToken, core: CharacterBPE, normalizer: SentencePieceNormalizer) -> int:
    if token.id == core.unknown or (core.unknown is None and token.special and token.content == "<unk>"):
        return UNKNOWN_TYPE
    if token.special:
        return CONTROL
    if token.content not in normalizer.symbols:
        raise ConfigError(
            f"tokenizer: added token {token.content!r} is found before text is normalized, unlike SentencePiece's"
        )
    return USER_DEFINED
