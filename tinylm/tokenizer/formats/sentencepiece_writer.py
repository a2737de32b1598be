"""Writes SentencePiece's `.model` files, whose fields sentencepiece_model.py names.

A model that was read is written again byte for byte. Fields that only training reads come from `Tokenizer.origin`.
"""

import base64
import struct
from pathlib import Path
from typing import NamedTuple

from tinylm.errors import ConfigError
from tinylm.files import atomic_write
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.base import Tokenizer, refuse_own_class
from tinylm.tokenizer.characters import BYTE_NAMES, SPACE, UNKNOWN, CharacterBPE
from tinylm.tokenizer.formats.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    Field,
    integer,
    message,
    read_message,
    write_message,
)
from tinylm.tokenizer.formats.scores import check_added, scores_of
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
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.pipeline import PipelineTokenizer
from tinylm.tokenizer.unigram import UNKNOWN_PIECE, UnigramTokenizer

MODEL = FileKind("a SentencePiece model", rb"\n.\n")


class Model(NamedTuple):
    """The content of a model file, except the fields that only training reads.

    Attributes:
        type: ModelType.BPE or ModelType.UNIGRAM
        pieces: in the order of their ids
        normalizer: how text is normalized
        byte_fallback: whether characters without a piece become bytes
        surface: the text that `<unk>` decodes to
    """

    type: int
    pieces: list[Piece]
    normalizer: SentencePieceNormalizer
    byte_fallback: bool
    surface: str


def write_sentencepiece(tokenizer: Tokenizer, path: str | Path, overwrite: bool = False) -> None:
    """Writes a `.model` that SentencePiece reads.

    If the tokenizer has bytes for unknown characters but no piece `<unk>`, one is added after all others.

    Raises:
        CannotCreateError: if the file exists and `overwrite` is false, or it is not such a file.
        ConfigError: if ids might differ in SentencePiece.
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
    elif isinstance(tokenizer, UnigramTokenizer):
        model = _model_of_unigram(tokenizer)
    else:
        raise ConfigError(f"tokenizer: kind {tokenizer.kind} has no pieces with scores; write tokenizer.json")
    if not any(piece.type == PieceType.UNKNOWN for piece in model.pieces):
        model.pieces.append(Piece("<unk>", 0.0, PieceType.UNKNOWN))
    check_pieces(model.pieces, model.byte_fallback)
    read = read_message(base64.b64decode(tokenizer.origin.get(ORIGIN, "")), "origin")
    fields = [field for field in read if field.number not in (ModelField.TRAINER, ModelField.NORMALIZER)]
    trainer = message(read, ModelField.TRAINER, "trainer_spec") or _new_trainer(model, tokenizer.marks.end)
    single = all(len(piece.name) == 1 for piece in model.pieces if piece.type == PieceType.NORMAL)
    if not (single and integer(trainer, TrainerField.MODEL_TYPE) == ModelType.CHAR and model.type == ModelType.BPE):
        trainer = _with(trainer, TrainerField.MODEL_TYPE, model.type, ModelType.UNIGRAM)
    trainer = _with(trainer, TrainerField.BYTE_FALLBACK, int(model.byte_fallback), 0)
    trainer = _with(trainer, TrainerField.SUFFIX, int(model.normalizer.treat_whitespace_as_suffix), 0)
    spec = message(read, ModelField.NORMALIZER, "normalizer_spec")
    for number, value in (
        (SpecField.DUMMY_PREFIX, model.normalizer.add_dummy_prefix),
        (SpecField.REMOVE_EXTRA, model.normalizer.remove_extra_whitespaces),
        (SpecField.ESCAPE, model.normalizer.escape_whitespaces),
    ):
        spec = _with(spec, number, int(value), 1)
    if table := model.normalizer.table:
        spec = _inserted(spec, Field(SpecField.CHARSMAP, BYTES, table))
    for number, inner in ((ModelField.TRAINER, trainer), (ModelField.NORMALIZER, spec)):
        fields = _inserted(fields, Field(number, BYTES, write_message(inner)))
    pieces = [Field(ModelField.PIECES, BYTES, _write_piece(piece)) for piece in model.pieces]
    return write_message(pieces + fields)


def _write_piece(piece: Piece) -> bytes:
    name, score = piece.name.encode(), struct.pack("<f", piece.score)
    fields = [
        Field(PieceField.PIECE, BYTES, name),
        Field(PieceField.SCORE, FIXED32, score),
        Field(PieceField.TYPE, VARINT, piece.type),
    ]
    return write_message(fields[:2] if piece.type == PieceType.NORMAL else fields)


def _new_trainer(model: Model, end: int | None) -> list[Field]:
    """A trainer_spec for a tokenizer that SentencePiece did not train, with the fields that its programs read."""
    unknown = next(token for token, piece in enumerate(model.pieces) if piece.type == PieceType.UNKNOWN)
    end = -1 if end is None or model.pieces[end].type != PieceType.CONTROL else end
    fields: list[Field] = []
    numbers = {
        TrainerField.MODEL_TYPE: model.type,
        TrainerField.VOCAB_SIZE: len(model.pieces),
        TrainerField.UNK_ID: unknown,
        TrainerField.EOS_ID: end,
        TrainerField.BOS_ID: -1,
        TrainerField.PAD_ID: -1,
    }
    names = {
        TrainerField.UNK_SURFACE: model.surface,
        TrainerField.UNK_PIECE: model.pieces[unknown].name,
        TrainerField.EOS_PIECE: model.pieces[end].name,
    }
    for number, value in numbers.items():
        fields = _inserted(fields, Field(number, VARINT, value & (1 << 64) - 1))
    for number, name in names.items() if end >= 0 else [*names.items()][:2]:
        fields = _inserted(fields, Field(number, BYTES, name.encode()))
    return fields


def _with(fields: list[Field], number: int, value: int, default: int) -> list[Field]:
    """The fields with one value replaced."""
    if integer(fields, number, default) == value:
        return fields
    return _inserted([field for field in fields if field.number != number], Field(number, VARINT, value))


def _inserted(fields: list[Field], new: Field) -> list[Field]:
    """The fields with a new one inserted in the order of their numbers."""
    place = next((place for place, field in enumerate(fields) if field.number > new.number), len(fields))
    return [*fields[:place], new, *fields[place:]]


def _model_of_characters(tokenizer: PipelineTokenizer, core: CharacterBPE) -> Model:
    """The model of a tokenizer with a core of characters."""
    if isinstance(tokenizer.normalization, dict) and tokenizer.prefix == "none":
        normalizer = Normalizer.from_dict(tokenizer.normalization)
    elif not tokenizer.normalization and tokenizer.prefix in ("none", "always") and tokenizer.spaces == "normalizer":
        normalizer = plain_normalizer(tokenizer.prefix == "always")
    else:
        normalizer = None
    if not isinstance(normalizer, SentencePieceNormalizer) or core.words or normalizer.strips != tokenizer.strip:
        raise ConfigError("tokenizer: handles spaces differently from SentencePiece")
    check_added(tokenizer, "SentencePiece")
    added = {token.id for token in tokenizer.added}
    pieces = {
        token: Piece(
            name,
            0.0,
            PieceType.BYTE
            if name in BYTE_NAMES and core.unknown is None
            else PieceType.UNUSED
            if token in core.unused
            else PieceType.NORMAL,
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
    return Model(ModelType.BPE, ordered, normalizer, core.unknown is None, core.surface)


def _type_of(token: AddedToken, core: CharacterBPE, normalizer: SentencePieceNormalizer) -> int:
    if token.id == core.unknown or (core.unknown is None and token.special and token.content == "<unk>"):
        return PieceType.UNKNOWN
    if token.special:
        return PieceType.CONTROL
    if token.content not in normalizer.symbols:
        raise ConfigError(
            f"tokenizer: added token {token.content!r} is found before text is normalized, unlike SentencePiece's"
        )
    return PieceType.USER_DEFINED


def _model_of_unigram(tokenizer: UnigramTokenizer) -> Model:
    """The model of a UnigramTokenizer. If it has no ▁ for spaces, SentencePiece keeps spaces too."""
    normalizer = tokenizer.normalizer
    if normalizer is None:
        normalizer = SentencePieceNormalizer("", False, False, escape_whitespaces=tokenizer.marker)
    if not isinstance(normalizer, SentencePieceNormalizer) or tokenizer.spacing or tokenizer.split != "pieces":
        raise ConfigError("tokenizer: normalizes or splits text differently from SentencePiece")
    if (normalizer.escape_whitespaces, normalizer.strips) != (tokenizer.marker, tokenizer.strip):
        raise ConfigError("tokenizer: writes or drops spaces differently from SentencePiece")
    if tokenizer.unknown_score is not None and not tokenizer.model.closed:
        raise ConfigError("tokenizer: unknown characters have another score than in SentencePiece")
    names = [*tokenizer.pieces, *(name for name in tokenizer.special_tokens if name not in {*tokenizer.pieces})]
    scores = [*tokenizer.scores, *[None] * (len(names) - len(tokenizer.pieces))]
    pieces = [
        _piece(tokenizer, normalizer, token, name, score)
        for token, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    return Model(ModelType.UNIGRAM, pieces, normalizer, tokenizer.byte_fallback, tokenizer.surface or UNKNOWN)


def _piece(
    tokenizer: UnigramTokenizer, normalizer: SentencePieceNormalizer, token: int, name: str, score: float | None
) -> Piece:
    if token == tokenizer.unknown or (tokenizer.unknown is None and name == UNKNOWN_PIECE):
        return Piece(name, 0.0, PieceType.UNKNOWN)
    if name in tokenizer.special_tokens:
        return Piece(name, 0.0, PieceType.CONTROL)
    if tokenizer.byte_fallback and name in BYTE_NAMES:
        return Piece(name, 0.0, PieceType.BYTE)
    if name in normalizer.symbols:
        return Piece(name, 0.0, PieceType.USER_DEFINED)
    if "\0" in name or (SPACE in name and not tokenizer.marker):
        raise ConfigError(
            f"piece {token}: has NUL, or a ▁ that is not a space, which SentencePiece cannot tell apart: {name!r}"
        )
    if score is not None and struct.unpack("<f", struct.pack("<f", score))[0] != score:
        raise ConfigError(f"piece {token}: SentencePiece has float32 scores, which cannot hold {score}")
    return Piece(name, score or 0.0, PieceType.UNUSED if score is None else PieceType.NORMAL)
